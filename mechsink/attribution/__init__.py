"""Attribution: what a metric owes to each place, by gradients.

May import: rooms up to models and interventions.
"""
