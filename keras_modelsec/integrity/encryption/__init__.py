"""Secrecy at rest."""
