"""Training runs under Ray Train."""
