"""What a model has learned, measured apart from training."""
