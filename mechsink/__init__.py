"""Mechanistic interpretability of attention sinks and circuits.

Public names load on first use (PEP 562); `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
