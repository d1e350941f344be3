"""Images for training: named datasets, files and folders of the user's, and the feeds that deal them to the workers."""

from infogan_ray.data.choosing import make_feed
from infogan_ray.data.datasets import DataConfig, ImageSet, load_images
from infogan_ray.data.feed import Feed, InMemoryFeed, to_unit_range

__all__ = ["DataConfig", "Feed", "ImageSet", "InMemoryFeed", "load_images", "make_feed", "to_unit_range"]
