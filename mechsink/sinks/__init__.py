"""Sinks: attention sinks, value drains, residual peaks, massive activations.

Each measurement is a function that takes a model and tokens and returns a frozen
result; `measure` makes several of them share one forward pass.
May import: sites, run, results, plotting, prompts, metrics, models, interventions,
attribution.
"""
