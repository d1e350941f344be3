"""Feeds: how training reads its images."""
