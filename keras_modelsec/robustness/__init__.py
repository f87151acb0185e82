"""Robustness: attacks, adversarial training, and the monitor that measures it."""
