"""Parity for models, and repair from it."""
