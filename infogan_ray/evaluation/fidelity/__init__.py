"""Similarity of generated images to real ones: distances, precision and recall on learned features."""
