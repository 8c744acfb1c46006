"""Where work is done: in this process, in several, or on a Ray cluster.

The unit of work and its one thread are the same everywhere, so the results are too.
"""
