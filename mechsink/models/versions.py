"""Versions of packages, read from disk once: `Model.info` is asked often."""

import functools
import importlib.metadata


@functools.cache
def package_version(name: str) -> str:
    """Version of an installed package."""
    return importlib.metadata.version(name)
