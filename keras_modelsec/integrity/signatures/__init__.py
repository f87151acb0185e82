"""Signatures and statements: what is signed, how it is written, verified and saved."""
