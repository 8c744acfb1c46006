"""Massive activations: found, and overwritten."""
