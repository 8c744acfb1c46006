"""Reports: one self-contained HTML page a run, with its figures and tables.

A report states what was measured, on which tokens and with which settings.
May import: sites, run, results, plotting, prompts, metrics, models,
interventions, attribution, sinks, circuits, experiments.
"""
