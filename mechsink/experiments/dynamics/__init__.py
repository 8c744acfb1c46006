"""Reduced dynamics of a sink beside training."""
