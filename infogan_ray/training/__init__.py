"""The training of a run on one worker: config, train state, step, loop, and what rank 0 does beside it. No Ray."""
