"""File formats and layouts of images, one module each."""
