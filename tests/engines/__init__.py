"""Engines: the same results wherever the work is done."""
