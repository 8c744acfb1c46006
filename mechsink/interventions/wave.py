"""The sweep engine: many patches of a run, computed together and exactly.

Base and source are run once. A patch at layer l, position p leaves all before it
as it was, so one growing batch passes through the layers, gaining each layer's
patched rows as it goes; earlier keys and values come from the base run, and the
pass ends where the metric has seen all that it reads.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.entries import Entry
from mechsink.interventions.reading import Reading
from mechsink.models.continuation import BaseRun
from mechsink.prompts import TokenPairs
from mechsink.run import Run
from mechsink.sites import Site

Label = tuple[int, int | None, int | None]  # layer, part, position
CALL_TOKENS = 1024
"""Tokens that a CPU takes through a block at once: more spill out of its cache
(measured on SmolLM2: 82 billion multiply-adds a second at 4,096, 100 at 1,024)."""


def wave(
    base: BaseRun,
    entries: Sequence[Entry],
    reading: Reading,
    at_base: Run,
    pairs: TokenPairs,
) -> tuple[list[Label], Float[Tensor, "patch prompt"]]:
    """The metric of every patch in `entries` that can reach what is read.

    Args:
        base: the run that is patched.
        entries: patches, of any positions; the earliest sets what is computed.
        reading: what the metric reads.
        at_base: the same of the base run.
        pairs: the prompts of `base`.
    """
    n_prompts, n_pos = base.tokens.shape
    depth = reading.depth(base.n_layers)
    start = min(entry.start for entry in entries)
    tail = base.tail(start)
    batch = _Batch(n_prompts, n_pos - start, base.tokens.device)
    labels: list[Label] = []
    seen: dict[Site, Tensor] = {}
    with torch.no_grad():
        for level in range(depth + 1):
            earlier = len(batch)
            if new := list(_entering(base, entries, level, start)):
                labels += [label for label, _ in new]
                batch.add(torch.cat([stream for _, stream in new]))
            if not len(batch):
                continue
            for site in reading.sites:
                if site == Site("resid_pre", level):
                    seen[site] = batch.joined()
                elif level and site == Site("resid_post", level - 1):
                    # A patch of this level's resid_pre comes after it.
                    late = entries[0].name == "resid_pre"
                    seen[site] = batch.joined()[: earlier if late else None]
            if level == depth:
                break
            patterns = [s for s in reading.sites if s == Site("pattern", level, s.head)]
            last = level == base.n_layers - 1 and reading.logits == "last"
            if patterns:
                found = batch.through(tail.block, level, patterns=True)
                seen |= {site: found[site.index] for site in patterns}
            elif last and Site("resid_post", level) not in reading.sites:
                batch.through(tail.last, level)
            else:
                batch.through(tail.block, level)
        if not len(batch):
            return [], torch.empty(0, n_prompts, dtype=torch.float64)
        logits = None
        if reading.logits == "last":
            logits = base.tail(n_pos - 1).logits(batch.ends(), reading.vocabulary)
        elif reading.logits == "all":
            logits = tail.logits(batch.joined(), reading.vocabulary)
        index = batch.prompts(len(batch))
        run = reading.of_patched(at_base, start, index, logits, seen)
        values = reading.value(run, pairs.rows(index))
    return labels, values.reshape(len(labels), n_prompts)


def _entering(
    base: BaseRun, entries: Sequence[Entry], level: int, start: int
) -> Iterator[tuple[Label, Tensor]]:
    """Patches that enter at this level, with their streams from `start` on."""
    for entry in entries:
        for layer, stream in entry.streams.items():
            if entry.level[layer] != level:
                continue
            if entry.start > start:  # unchanged up to its own position
                kept = base.resid[level][:, start : entry.start]
                stream = torch.cat([kept, stream], dim=1)
            yield (layer, entry.part, entry.pos), stream


class _Batch:
    """Rows on their way through the layers, in pieces that a CPU's cache holds.

    Pieces are never joined on the way: copying all rows twice a layer took a tenth of
    the time.
    """

    def __init__(self, n_prompts: int, n_tail: int, device: torch.device) -> None:
        self._n_prompts, self._device = n_prompts, device
        on_cpu = device.type == "cpu"
        self._most = max(1, CALL_TOKENS // n_tail) if on_cpu else 2**31
        self._pieces: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def add(self, rows: Float[Tensor, "row tail d_model"]) -> None:
        """Put patches' rows at the end, each patch's prompts in order."""
        while len(rows):
            room = self._most - len(self._pieces[-1]) if self._pieces else 0
            if room <= 0:
                self._pieces.append(rows[: self._most])
                rows = rows[self._most :]
            else:
                n_pos = self._pieces[-1].shape[1]  # 1 after the last block's shortcut
                some = rows[:room, -n_pos:]
                self._pieces[-1] = torch.cat([self._pieces[-1], some])
                rows = rows[room:]

    def prompts(self, n_rows: int, first: int = 0) -> Int[Tensor, " row"]:
        """Which prompt each row belongs to."""
        rows = torch.arange(first, first + n_rows, device=self._device)
        return rows % self._n_prompts

    def through(
        self, block: Callable[..., Tensor], layer: int, *, patterns: bool = False
    ) -> Tensor:
        """Take all rows through a block; patterns [row head tail key] if asked."""
        first, seen = 0, [torch.empty(0, device=self._device)]
        for number, piece in enumerate(self._pieces):
            index = self.prompts(len(piece), first)
            first += len(piece)
            more = (seen.append,) if patterns else ()
            self._pieces[number] = block(layer, piece, index, *more)
        return torch.cat(seen[1:]) if patterns else seen[0]

    def joined(self) -> Float[Tensor, "row tail d_model"]:
        """All rows."""
        return torch.cat(self._pieces)

    def ends(self) -> Float[Tensor, "row 1 d_model"]:
        """All rows at the last position."""
        return torch.cat([piece[:, -1:] for piece in self._pieces])
