"""The only room that knows a backend: every model becomes a `mechsink.Model`.

May import: sites, run, toy_tasks.
"""
