"""Marked spans of a prompt: their sinks, attention, saliency, contrast."""
