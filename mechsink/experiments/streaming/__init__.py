"""Streaming with a bounded cache."""
