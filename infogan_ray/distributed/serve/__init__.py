"""A model as a web service under Ray Serve."""
