"""Writes images as a prepared dataset. Each task writes one shard, in any order and on any machine."""
