"""Evaluation of trained models, separate from training."""
