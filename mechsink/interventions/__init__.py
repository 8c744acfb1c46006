"""Interventions: what happens to a metric when something inside is changed.

May import: rooms up to models.
"""
