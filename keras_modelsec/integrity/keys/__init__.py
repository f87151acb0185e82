"""Keys, certificates and trust: who signs, and whom a reader believes."""
