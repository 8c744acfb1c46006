"""Sizes and switches of the toy transformer."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from toy_tasks.checks import check_fields
from toy_tasks.jsonable import ADDED_LATER, checked_fields, json_fields
from toy_tasks.operators import Operator

Norm = Literal["layer", "rms", "none"]
Positions = Literal["learned", "sinusoidal", "none", "rotary", "alibi", "relative"]
Normaliser = Literal["softmax", "relu"]
Nonlinearity = Literal["relu", "linear"]
Carrier = Literal["full", "self", "peek"]


@dataclass(frozen=True)
class ToyConfig:
    """What a `ToyTransformer` is, with the ablation switches of the paper.

    `d_vocab=0` stands for "as many as the task has"; `train` fills it in.

    `carriers` says, one a layer, which keys a query may see: "full", itself and all
    before it; "self", itself and position 0, where `<s>` stands; "peek", as "self",
    but the last token of the prompt sees all. A token's view at a peeking layer thus
    depends on whether the prompt ends there: that is part of the model.

    `positions`: "learned" and "sinusoidal" are added to the embedding; "rotary",
    "alibi" and "relative" act in the attention (`toy_tasks.positions`). Rotary turns
    queries and keys after their hooks, so that these stay linear in what they read.

    `prefix`: the first so many tokens see each other, and training leaves out those
    targets, which they would see. Such a model is not causal inside the prefix.

    Args:
        d_vocab: tokens; 0: the task's.
        n_layers: blocks.
        n_heads: query heads a layer.
        d_model: width of the residual stream.
        d_head: width of a head.
        d_mlp: neurons a layer.
        n_ctx: longest prompt, tokens.
        n_kv_heads: key-value heads a layer; None: n_heads.
        norm: "layer", "rms" or "none", before attention, MLP and unembedding.
        positions: see above.
        attention: "softmax", or "relu": relu(score) / (query position + 1).
        mlp: nonlinearity, "relu" or "linear".
        attn_layers: layers with attention; None: all.
        mlp_layers: layers with an MLP; None: all.
        tied: whether the unembedding is the embedding transposed.
        frozen: parameters whose name starts so stay as they began.
        carriers: see above; None: "full" everywhere.
        operators: attention operator, one for all layers or one a layer; None:
            `attention`.
        decorrelation: weight of the decorrelation loss after each block but the last.
        prefix: tokens that see each other.

    Raises:
        ValueError: a size under 1, an unknown choice, a layer that is not there.

    Source: Guo et al. 2024 (arXiv:2410.13835) for architecture and ablations; "All
    for One" (arXiv:2509.09650) for self-only and peeking layers; Gu et al. 2024
    (arXiv:2410.10781) for the choice of positions and the prefix.

    Examples:
        >>> from toy_tasks import ToyConfig
        >>> config = ToyConfig(n_layers=3, norm="rms", positions="rotary")
        >>> config.kv_heads, config.adds_positions
        (1, False)
        >>> ToyConfig(n_layers=0)
        Traceback (most recent call last):
            ...
        ValueError: ToyConfig: n_layers=0. It must be at least 1.
    """

    d_vocab: int = 0
    n_layers: int = 1
    n_heads: int = 1
    d_model: int = 64
    d_head: int = 64
    d_mlp: int = 256
    n_ctx: int = 64
    n_kv_heads: int | None = None
    norm: Norm = "layer"
    positions: Positions = "learned"
    attention: Normaliser = "softmax"
    mlp: Nonlinearity = "relu"
    attn_layers: tuple[int, ...] | None = None
    mlp_layers: tuple[int, ...] | None = None
    tied: bool = False
    frozen: tuple[str, ...] = ()
    carriers: tuple[Carrier, ...] | None = field(default=None, metadata=ADDED_LATER)
    # Attention operator, one for all layers or one a layer; None: `attention`, faster.
    operators: Operator | tuple[Operator | None, ...] | None = field(
        default=None, metadata=ADDED_LATER
    )
    # Weight of `decorrelation_loss` after each block but the last, added in training.
    decorrelation: float = field(default=0.0, metadata=ADDED_LATER)
    prefix: int = field(default=0, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"ToyConfig: {name}={getattr(self, name)}. It must be at least 1."
                )
        if self.d_vocab < 0:
            raise ValueError(
                f"ToyConfig: d_vocab={self.d_vocab}. Allowed: 1 and more, or 0 to "
                "let train take the task's."
            )
        for name, choices in (
            ("norm", get_args(Norm)),
            ("positions", get_args(Positions)),
            ("attention", get_args(Normaliser)),
            ("mlp", get_args(Nonlinearity)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ToyConfig: {name}={getattr(self, name)!r}. Allowed: "
                    f"{', '.join(map(repr, choices))}."
                )
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(
                f"ToyConfig: n_kv_heads={self.n_kv_heads} does not divide "
                f"n_heads={self.n_heads}. Each key-value head serves equally many."
            )
        for name in ("attn_layers", "mlp_layers"):
            for layer in getattr(self, name) or ():
                if not 0 <= layer < self.n_layers:
                    raise ValueError(
                        f"ToyConfig: {name} names layer {layer}. Allowed: 0 to "
                        f"{self.n_layers - 1}; None for all, () for no layer."
                    )
        if self.decorrelation < 0:
            raise ValueError(
                f"ToyConfig: decorrelation={self.decorrelation}. Allowed: 0 (none) and "
                "above; it weighs a loss of 0 to 1 against nats."
            )
        self._check_carriers()
        self._check_operators()
        self._check_positions()
        self._check_prefix()

    def _check_carriers(self) -> None:
        if self.carriers is None:
            return
        choices = get_args(Carrier)
        unknown = [c for c in self.carriers if c not in choices]
        if unknown or len(self.carriers) != self.n_layers:
            raise ValueError(
                f"ToyConfig: carriers={self.carriers!r} with n_layers={self.n_layers}. "
                f"Give one of {', '.join(map(repr, choices))} for each layer, or None "
                "for full attention everywhere."
            )

    def _check_operators(self) -> None:
        if self.operators is None:
            return
        if isinstance(self.operators, tuple) and len(self.operators) != self.n_layers:
            raise ValueError(
                f"ToyConfig: {len(self.operators)} operators with n_layers="
                f"{self.n_layers}. Give one Operator for all layers, or one (or None, "
                "for plain attention) for each."
            )
        if self.attention != "softmax" or self.carriers is not None:
            raise ValueError(
                f"ToyConfig: attention={self.attention!r} and carriers="
                f"{self.carriers!r} beside operators. An operator says both: leave "
                "them at 'softmax' and None."
            )

    def _check_positions(self) -> None:
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"ToyConfig: positions='rotary' with d_head={self.d_head}. Rotary "
                "turns pairs of entries: take an even d_head."
            )
        if self.operators is not None and self.positions in ("alibi", "relative"):
            raise ValueError(
                f"ToyConfig: positions={self.positions!r} beside operators, which make "
                "their scores themselves. Take any other positions, or plain attention "
                "(operators=None)."
            )

    def _check_prefix(self) -> None:
        if not 0 <= self.prefix <= self.n_ctx:
            raise ValueError(
                f"ToyConfig: prefix={self.prefix} with n_ctx={self.n_ctx}. Allowed: 0 "
                f"(causal throughout) to {self.n_ctx}."
            )
        if self.prefix and not (
            self.attention == "softmax"
            and self.carriers is None
            and self.operators is None
        ):
            raise ValueError(
                f"ToyConfig: prefix={self.prefix} beside attention={self.attention!r}, "
                "carriers or operators. A prefix takes plain softmax attention: leave "
                "them at 'softmax', None and None."
            )

    @property
    def adds_positions(self) -> bool:
        """Whether there is a position embedding."""
        return self.positions in ("learned", "sinusoidal")

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def has_attention(self, layer: int) -> bool:
        """Whether that layer has attention heads.

        Args:
            layer: from 0.
        """
        return self.attn_layers is None or layer in self.attn_layers

    def has_mlp(self, layer: int) -> bool:
        """Whether that layer has an MLP.

        Args:
            layer: from 0.
        """
        return self.mlp_layers is None or layer in self.mlp_layers

    def carrier(self, layer: int) -> Carrier:
        """Which keys that layer's queries may see."""
        return "full" if self.carriers is None else self.carriers[layer]

    def operator(self, layer: int) -> Operator | None:
        """That layer's attention operator; None for plain attention."""
        if isinstance(self.operators, tuple):
            return self.operators[layer]
        return self.operators

    def is_softmax(self, layer: int) -> bool:
        """Whether that layer's weights are shares of a softmax, sink slots included."""
        operator = self.operator(layer)
        plain = self.attention == "softmax"
        return plain if operator is None else operator.is_softmax

    @property
    def rows_sum_to_1(self) -> bool:
        """Whether attention to the tokens sums to 1 in every layer."""
        operators = [self.operator(layer) for layer in range(self.n_layers)]
        sums = all(o is None or o.rows_sum_to_1 for o in operators)
        return self.attention == "softmax" and sums

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values; those added later only where they are set."""
        return json_fields(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ToyConfig":
        """Rebuild what `to_json` wrote.

        Args:
            data: what `to_json` gave.

        Raises:
            ValueError: a field is unknown or missing.
        """
        values = checked_fields(cls, data)
        given = values.get("operators")
        if isinstance(given, tuple):
            values["operators"] = tuple(o and Operator.from_json(o) for o in given)
        elif given is not None:
            values["operators"] = Operator.from_json(given)
        return cls(**values)
