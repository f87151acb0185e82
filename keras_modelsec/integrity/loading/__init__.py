"""Loading what was verified, and nothing but a model."""
