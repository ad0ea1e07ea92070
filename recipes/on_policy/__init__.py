"""Pairs from the current model's own mistakes: its answers, the pool they are compared with, the builder of pairs."""
