"""Writes a source of images as a prepared dataset: one shard a task, in any order and on any machine."""
