"""Priors of codes, one module a kind. ``base.Prior`` says what a kind must do; ``registry.KINDS`` lists the kinds."""
