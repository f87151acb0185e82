"""Signing and verifying models, and saving them signed."""
