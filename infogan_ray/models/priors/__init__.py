"""Priors of codes, one module per kind. ``base.Prior`` is their interface; ``registry.KINDS`` lists them."""
