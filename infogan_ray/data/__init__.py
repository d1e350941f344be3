"""Images for training: datasets, file formats, shards, and the feeds that read them."""
