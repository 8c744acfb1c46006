"""The sweep engine: every patch of a sweep, computed together and exactly.

Base and source are run once. A patch at layer l, position p leaves all before it
as it was, so per position one growing batch passes through the layers, gaining
each layer's patched rows as it goes; earlier keys and values come from the base.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.entries import Entry
from mechsink.models.continuation import BaseRun


@dataclass(frozen=True, eq=False)
class Cell:
    """One patch, for all prompts: where, and the logits after the last token."""

    layer: int
    pos: int | None
    part: int | None
    logits: Float[Tensor, "prompt token"]


def wave(
    base: BaseRun,
    entries: Sequence[Entry],
    vocabulary: Int[Tensor, " token"] | None,
) -> Iterator[Cell]:
    """Last-token logits of every patch in `entries`, which share one position.

    Args:
        base: the run that is patched.
        entries: patches that begin at the same position.
        vocabulary: tokens whose logits are wanted; None for all.
    """
    n_prompts, n_pos = base.tokens.shape
    start = entries[0].start
    tail = base.tail(start)
    prompts = torch.arange(n_prompts, device=base.tokens.device)
    rows: Tensor | None = None
    labels: list[tuple[int, int | None, int | None]] = []
    with torch.no_grad():
        for level in range(base.n_layers + 1):
            new = [
                (entry, layer)
                for entry in entries
                for layer in entry.streams
                if entry.level[layer] == level
            ]
            if new:
                labels += [(layer, entry.pos, entry.part) for entry, layer in new]
                joined = [entry.streams[layer] for entry, layer in new]
                rows = torch.cat([*([] if rows is None else [rows]), *joined])
            if level < base.n_layers and rows is not None:
                rows = tail.block(level, rows, prompts.repeat(len(labels)))
        assert rows is not None
        last = rows[:, -1:]
        logits = base.tail(n_pos - 1).logits(last, vocabulary)[:, 0]
    for number, label in enumerate(labels):
        chosen = slice(number * n_prompts, (number + 1) * n_prompts)
        layer, pos, part = label
        yield Cell(layer, pos, part, logits[chosen])
