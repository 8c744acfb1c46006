"""Sink circuits: which components make a position a sink.

search.py asks and answers; ask.py checks the question; runs.py runs with a component's
write replaced, gradients.py attributes, confirm.py ablates the top nodes together;
metrics.py, peak.py, tables.py and result.py are what is measured and returned.
"""
