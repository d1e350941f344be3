"""Latents, networks, losses, and the trained InfoGAN."""
