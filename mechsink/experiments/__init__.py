"""Experiments: published studies as one call, composed from the other rooms.

May import: every room to the left, and toy_tasks.
"""
