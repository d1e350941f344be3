"""One worker in a process of its own, without Ray Train: all that a run of one worker needs, here or on a cluster."""
