"""File systems, run directories and checkpoints."""
