"""Prepared datasets: Parquet shards and a manifest."""
