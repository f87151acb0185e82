"""Files of any domain: opened without surprises, hashed, staged, locked, published whole.

Knows no domain and no Keras. One of each: `files` (open, read, hash, list), `publishing` (what is
there whole or not at all), `staging` (where it is made), `locks` (one writer at a time).
"""
