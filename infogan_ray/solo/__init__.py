"""One worker on this machine, in a process of its own, without Ray: what a run of one worker needs of a cluster."""
