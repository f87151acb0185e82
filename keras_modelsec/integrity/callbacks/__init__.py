"""Keras callbacks that sign what they write."""
