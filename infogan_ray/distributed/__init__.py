"""The only code that talks to Ray Train and Tune."""
