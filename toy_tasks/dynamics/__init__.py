"""Reduced dynamics of a sink, and a toy that follows them."""

from toy_tasks.dynamics.reduced import SinkFlow, reduced_dynamics

__all__ = ["SinkFlow", "reduced_dynamics"]
