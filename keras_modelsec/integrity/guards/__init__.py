"""Guards for weights and intermediate values while a model runs."""
