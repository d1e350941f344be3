"""Experiment tracking with TensorBoard, MLflow and Weights & Biases."""
