"""Real text as a task: Python's standard library, read as a language."""
