"""Images for training: named datasets, files and folders of the user's, and the feed that deals them to the workers."""

from infogan_ray.data.datasets import DataConfig, ImageSet, load_images
from infogan_ray.data.feed import InMemoryFeed, to_unit_range

__all__ = ["DataConfig", "ImageSet", "InMemoryFeed", "load_images", "to_unit_range"]
