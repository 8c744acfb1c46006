"""Heads ranked by what an edit of them does."""
