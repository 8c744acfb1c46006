"""Operator: memory x carrier x kernel x normaliser x gate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toy_tasks.operators.carriers import Carrier, Full
from toy_tasks.operators.flow import Flow
from toy_tasks.operators.gates import Affine, Gate, Open
from toy_tasks.operators.kernels import Exponential, Kernel, Pointwise
from toy_tasks.operators.memory import Memory, Pooled, Tokens
from toy_tasks.operators.normalisers import Normaliser, SinkLogit, Sum
from toy_tasks.operators.parts import Part

_KINDS: dict[str, type[Part]] = {
    "memory": Memory,
    "carrier": Carrier,
    "kernel": Kernel,
    "normaliser": Normaliser,
    "gate": Gate,
}


@dataclass(frozen=True)
class Operator:
    """An attention operator, softmax attention unless it says otherwise.

    Scores of the kernel between a query and what the memory holds, hidden where the
    carrier does, made weights by kernel and normaliser, scaled by the gate.


    Raises:
        ValueError: the parts do not fit together.

    Source: the five-part form is that of "Geometric Attention" (systems.md row 15).
    """

    memory: Memory = field(default_factory=Tokens)
    carrier: Carrier = field(default_factory=Full)
    kernel: Kernel = field(default_factory=Exponential)
    normaliser: Normaliser = field(default_factory=Sum)
    gate: Gate = field(default_factory=Open)

    def __post_init__(self) -> None:
        self.normaliser.check(self.kernel)
        if not isinstance(self.memory, Tokens):
            for part in (self.kernel, self.normaliser):
                if not part.takes_slots:
                    raise ValueError(
                        f"Operator: {part} has no place for keys that are no tokens, "
                        f"such as those of {self.memory}. Use memory=Tokens()."
                    )
            if self.normaliser.reads_hidden or not self.normaliser.is_causal:
                raise ValueError(
                    f"Operator: {self.normaliser} balances a square of tokens, which "
                    f"{self.memory} makes oblong. Use memory=Tokens()."
                )
        if self.normaliser.reads_hidden and type(self.carrier) is not Full:
            raise ValueError(
                f"Operator: {self.normaliser} balances all tokens of a prefix; with "
                f"{self.carrier} they are not all seen. Use carrier=Full()."
            )
        if isinstance(self.normaliser, Flow) and type(self.carrier) is not Full:
            raise ValueError(
                f"Operator: Flow conserves sums over all earlier tokens, which "
                f"{self.carrier} does not show. Use carrier=Full()."
            )

    @property
    def is_causal(self) -> bool:
        """Whether no output depends on later tokens."""
        return all(getattr(self, name).is_causal for name in _KINDS)

    @property
    def reads_x(self) -> bool:
        """Whether some part reads the residual beside queries, keys and values."""
        return any(getattr(self, name).reads_x for name in _KINDS)

    @property
    def is_softmax(self) -> bool:
        """Whether weights are shares of a softmax, over tokens and what else there is.

        Then a weight is a share of attention as it stands, also where a slot or a
        sink logit takes the rest.
        """
        return (
            self.kernel.is_exponential
            and isinstance(self.normaliser, Sum | SinkLogit)
            and not isinstance(self.gate, Affine)
        )

    @property
    def rows_sum_to_1(self) -> bool:
        """Whether the attention to the tokens sums to 1 for every query."""
        signed = isinstance(self.kernel, Pointwise) and self.kernel.function in (
            "linear",
            "relu",  # a row of it may be all zeros
        )
        phi = getattr(self.kernel, "phi", None)
        return (
            self.normaliser.rows_sum_to_1
            and isinstance(self.memory, Tokens | Pooled)
            and not isinstance(self.gate, Affine)
            and not signed
            and phi != "learned"
        )

    def to_json(self) -> dict[str, Any]:
        """Its parts, by name, with their settings."""
        return {name: getattr(self, name).to_json() for name in _KINDS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Operator":
        """Rebuild what `to_json` wrote.

        Raises:
            ValueError: a part is missing or unknown.
        """
        if set(data) != set(_KINDS):
            raise ValueError(
                f"Operator.from_json: parts {sorted(data)}. Allowed: exactly "
                f"{sorted(_KINDS)}."
            )
        parts: dict[str, Any] = {
            name: kind.from_json(data[name]) for name, kind in _KINDS.items()
        }
        return cls(**parts)
