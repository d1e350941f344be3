"""Training of a run on one worker: config, state, step and loop, and the other tasks of rank 0. No Ray."""
