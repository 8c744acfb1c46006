"""Runs in which components stop writing what is theirs at one position.

A component's write at the position is replaced by a reference: the mean of its writes
at the later positions of the same text, or nothing. Every other position keeps what
it had, and all that follows is computed.
May import: rooms up to attribution.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.attribution.short_runs import metric_of
from mechsink.attribution.wires import INPUT, Wires
from mechsink.attribution.writes import source_sites, written
from mechsink.models.memory import rows_that_fit
from mechsink.models.wiring import Wiring
from mechsink.prompts import TokenPairs
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site

Reference = Literal["mean", "zero"]


@dataclass(frozen=True, eq=False)
class Ends:
    """Some texts, and every component's value at the position: own and reference."""

    pairs: TokenPairs  # the texts, on both sides
    cache: Mapping[Site, Tensor]  # whole sites of the untouched run
    instead: Mapping[Site, Tensor]  # reference at the position, [batch ...]


@dataclass(frozen=True, eq=False)
class AtPosition:
    """The components of a model, as writers at one position.

    `names`: those that are asked about, as edges name them, in the order of writing.
    """

    model: Model
    wires: Wires
    wiring: Wiring
    position: int
    reference: Reference
    names: tuple[str, ...]

    def place(self, name: str) -> Site:
        """Where a component's value is replaced."""
        if name == INPUT:
            return Site("resid_pre", 0)
        site = self.wires.site(name)
        assert site is not None
        return site

    def by_site(self) -> dict[Site, list[str]]:
        """Whole sites, and which of their components are asked about."""
        found: dict[Site, list[str]] = {}
        for name in self.names:
            found.setdefault(self.place(name).whole, []).append(name)
        return found

    def batches(
        self, tokens: Int[Tensor, "text pos"], steps: int = 1
    ) -> list[TokenPairs]:
        """The texts, as many at once as fit with `steps` backward passes of each."""
        shape, n_pos = self.model.shape, tokens.shape[1]
        fit = rows_that_fit(
            shape, n_pos, dtype=self.model.dtype, device=self.model.device,
            n_logits=n_pos * shape.d_vocab,
        )  # fmt: skip
        pairs = TokenPairs(tokens, tokens, None, None, list(range(len(tokens))))
        rows = max(1, fit // (2 * shape.n_layers * steps))
        return [
            pairs.rows(slice(first, first + rows))
            for first in range(0, len(tokens), rows)
        ]

    @torch.no_grad()
    def ends(self, pairs: TokenPairs) -> Ends:
        """Run texts and keep what every component writes."""
        cache = self.model.run(pairs.clean, read=source_sites(self.wires)).cache
        later = slice(self.position + 1, None)
        instead = {
            site: torch.zeros_like(x[:, 0])
            if self.reference == "zero"
            else x[:, later].mean(1)
            for site, x in cache.items()
        }
        return Ends(pairs, cache, instead)

    def writes(self, ends: Ends) -> tuple[Tensor, Tensor]:
        """All sources' writes, and the same with the reference at the position.

        Both [batch source pos d_model].
        """
        own = written(self.wires, self.wiring, ends.cache)
        instead = own.clone()
        later = own[:, :, self.position + 1 :].mean(2)
        instead[:, :, self.position] = 0 if self.reference == "zero" else later
        return own, instead

    @torch.no_grad()
    def without(
        self, ends: Ends, metric: Metric, names: Collection[str]
    ) -> Float[Tensor, " batch"]:
        """The metric where these components write their reference at the position."""
        values, _ = metric_of(
            self.model, self.wiring, ends.pairs.clean, ends.pairs, metric,
            edit=self.edits(ends, names),
        )  # fmt: skip
        return values

    def edits(self, ends: Ends, names: Collection[str]) -> dict[Site, Edit]:
        """Put the reference of these components at the position."""
        edits: dict[Site, Edit] = {}
        for site in map(self.place, names):
            value = ends.instead[site.whole]
            if site.head is not None:
                value = value[:, site.head]
            edits[site] = self._put(value)
        return edits

    def _put(self, value: Tensor) -> Edit:
        def edit(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, self.position] = value.to(x.dtype)
            return x

        return edit
