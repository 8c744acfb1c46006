"""What `sink_circuit` is asked: checks of texts, heads and numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.attribution.wires import Wires
from mechsink.experiments.sink_circuits.metrics import SinkAttentionOf
from mechsink.experiments.sink_circuits.runs import AtPosition, Reference
from mechsink.models.wiring import wiring
from mechsink.run import Metric, Model
from mechsink.sinks.scores import sink_scores

IS_SINK = 0.3
"""Mean attention from which a head counts as sinking. Source: Gu et al. 2024."""


@dataclass(frozen=True, eq=False)
class Question:
    """A checked question."""

    what: AtPosition
    tokens: Int[Tensor, "text pos"]
    metric: Metric

    @property
    def graph(self) -> dict[str, Any]:
        """The fields of `Wires`, as `EdgeScores` keeps them."""
        return dataclasses.asdict(self.what.wires)


def question(
    model: Model,
    texts: str | Sequence[str] | Int[Tensor, "text pos"],
    heads: Sequence[tuple[int, int]] | None,
    position: int,
    reference: Reference,
    metric: Metric | None,
    length: int,
    layers: Sequence[int] | None,
    numbers: Mapping[str, int],
    top_edges: int,
) -> Question:
    """Check everything, and choose heads where none are given.

    Raises:
        ValueError: as `sink_circuit`.
    """
    if reference not in get_args(Reference):
        raise ValueError(
            f"sink_circuit: reference={reference!r}. Allowed: "
            f"{' or '.join(map(repr, get_args(Reference)))}."
        )
    for name, value in numbers.items():
        _need(name, value, 1)
    _need("top_edges", top_edges, 0)
    if heads is not None and metric is not None:
        raise ValueError(
            "sink_circuit: heads and metric exclude each other. Give "
            "metric=ms.sink_attention_of(heads), or one of them alone."
        )
    tokens = _tokens(model, texts, length)
    if isinstance(position, bool) or not 0 <= position < tokens.shape[1] - 2:
        raise ValueError(
            f"sink_circuit: position={position} of {tokens.shape[1]}-token texts. "
            f"Allowed: 0 to {tokens.shape[1] - 3}: at least two later tokens pay it "
            "attention and give the reference."
        )
    if metric is None:
        metric = SinkAttentionOf(_heads(model, tokens, heads, position), position)
    for site in metric.reads:
        model.shape.check(site)
    wires = Wires.of(model.shape)
    names = _names(wires, layers)
    what = AtPosition(model, wires, wiring(model), position, reference, names)
    return Question(what, tokens, metric)


def _names(wires: Wires, layers: Sequence[int] | None) -> tuple[str, ...]:
    """The input, and the heads and MLPs of some layers."""
    if layers is None:
        return wires.sources
    if not layers or any(not 0 <= layer < wires.n_layers for layer in layers):
        raise ValueError(
            f"sink_circuit: layers={list(layers)}. Allowed: some of 0 to "
            f"{wires.n_layers - 1}, or None for all."
        )
    return tuple(name for name in wires.sources if wires.layer(name) in {-1, *layers})


def _need(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"sink_circuit: {name}={value!r}. Allowed: {least} and more.")


def _tokens(
    model: Model, texts: str | Sequence[str] | Tensor, length: int
) -> Int[Tensor, "text pos"]:
    if isinstance(texts, Tensor):
        if texts.ndim != 2 or not len(texts):
            raise ValueError(
                f"sink_circuit: tokens of shape {tuple(texts.shape)}. Give Int[text "
                "pos], one row a text."
            )
        return texts.to(model.device)
    _need("length", length, 3)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("sink_circuit: there is no text. Give at least one.")
    rows = []
    for number, text in enumerate(texts):
        row = model.to_tokens(text)
        if row.shape[1] < length:
            raise ValueError(
                f"sink_circuit: text {number} has {row.shape[1]} tokens, length="
                f"{length} are needed. Give longer texts or a smaller length."
            )
        rows.append(row[:, :length])
    return torch.cat(rows)


def _heads(
    model: Model,
    tokens: Tensor,
    heads: Sequence[tuple[int, int]] | None,
    position: int,
) -> tuple[tuple[int, int], ...]:
    """The heads asked for, or those that sink here."""
    shape = model.shape
    if heads is not None:
        for layer, head in heads:
            if not (0 <= layer < shape.n_layers and 0 <= head < shape.n_heads):
                raise ValueError(
                    f"sink_circuit: head {head} of layer {layer} is not in this model. "
                    f"Allowed: layers 0 to {shape.n_layers - 1}, heads 0 to "
                    f"{shape.n_heads - 1}."
                )
        return tuple((int(layer), int(head)) for layer, head in heads)
    table = sink_scores(model, tokens, position).table
    columns = [table[name].to_numpy() for name in ("layer", "head", "score")]
    total = np.zeros((shape.n_layers, shape.n_heads))
    np.add.at(total, (columns[0], columns[1]), columns[2])
    mean = total / len(tokens)
    found = tuple((int(a), int(b)) for a, b in np.argwhere(mean > IS_SINK))
    if not found:
        layer, head = np.unravel_index(mean.argmax(), mean.shape)
        raise ValueError(
            f"sink_circuit: no head pays position {position} more than {IS_SINK} of "
            f"its attention; the most is {mean.max():.2f}, head {head} of layer "
            f"{layer}. Name heads= to explain them all the same."
        )
    return found
