"""Circuits: subgraphs of a model, chosen by their edges' scores.

May import: sites, run, results, plotting, progress, prompts, slots, metrics, models,
interventions, attribution, sinks.
"""
