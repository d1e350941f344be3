"""Searches under Ray Tune."""
