"""Mechanistic interpretability of attention sinks and circuits.

Public names load on first use (PEP 562); `__init__.pyi` lists them. The examples in
their docstrings begin with `import torch` and `import mechsink as ms`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
