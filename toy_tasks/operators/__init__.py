"""Attention operators: memory x carrier x kernel x normaliser x gate.

An `Operator` is five frozen settings; `OperatorAttention` runs it with parameters.
`OPERATORS` names the published ones. To add one, compose the parts at hand, or write
a part: a frozen dataclass with its formula, and a test against an answer from
elsewhere.
"""

from toy_tasks.operators.balanced import Sinkhorn, Unitary
from toy_tasks.operators.carriers import (
    Bidirectional,
    Full,
    Halo,
    Shards,
    ShiftedGroups,
    Window,
)
from toy_tasks.operators.catalogue import MAIN, OPERATORS
from toy_tasks.operators.flow import Flow
from toy_tasks.operators.gates import Affine, Open, SigmoidGate, ValueBias
from toy_tasks.operators.kernels import Exponential, Features, Pointwise, Static
from toy_tasks.operators.memory import KeyBias, Pooled, SinkToken, Tokens
from toy_tasks.operators.normalisers import ClampedSum, SinkLogit, Sum, Unnormalised
from toy_tasks.operators.operator import Operator
from toy_tasks.operators.routed import FullOrSparse, HeavyHitters, Regions
from toy_tasks.operators.routed_heads import RoutedHeads

__all__ = [
    "MAIN",
    "OPERATORS",
    "Affine",
    "Bidirectional",
    "ClampedSum",
    "Exponential",
    "Features",
    "Flow",
    "Full",
    "FullOrSparse",
    "Halo",
    "HeavyHitters",
    "KeyBias",
    "Open",
    "Operator",
    "Pointwise",
    "Pooled",
    "Regions",
    "RoutedHeads",
    "Shards",
    "ShiftedGroups",
    "SigmoidGate",
    "SinkLogit",
    "SinkToken",
    "Sinkhorn",
    "Static",
    "Sum",
    "Tokens",
    "Unitary",
    "Unnormalised",
    "ValueBias",
    "Window",
]
