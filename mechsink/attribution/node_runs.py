"""What every node method runs: checks of both ends, batches, gradients at sites."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mechsink.metrics import at_least_float32
from mechsink.models.memory import free_bytes
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site

T = TypeVar("T")
INPUT_SITE = Site("resid_pre", 0)
WRITES = ("attn_out", "mlp_out")
SHARE, ENOUGH = 0.25, 1.5 * 2**30  # of free memory; bytes that keep any core busy


@dataclass(frozen=True, eq=False)
class AskedNodes:
    """A checked question: model, prompts, and the metric of both runs."""

    caller: str
    model: Model
    metric: Metric
    groups: list[TokenPairs]
    clean: list[float]
    corrupted: list[float]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        n_pos = {i: g.n_pos for g in self.groups for i in g.index}
        return [n_pos[i] for i in range(len(n_pos))]

    def each(
        self, work: Callable[[TokenPairs], T], patterns: int = 4
    ) -> Iterator[tuple[TokenPairs, T]]:
        """Do some work on all pairs, as many at once as fit; fewer after an overrun.

        Args:
            work: what to do with a batch.
            patterns: pattern-sized tensors a layer that it holds.

        Raises:
            MemoryError: not even one pair fits.
        """
        for group in self.groups:
            n = self._rows_at_once(group.n_pos, patterns)
            first = 0
            while first < len(group):
                batch = group.rows(slice(first, first + n))
                try:
                    done = work(batch)
                except torch.OutOfMemoryError as error:
                    if n == 1:
                        raise MemoryError(
                            f"{self.caller}: not even one pair fits on "
                            f"{self.model.device}. Use shorter prompts, a smaller "
                            "dtype, or fewer layers."
                        ) from error
                    n, done = max(1, len(batch) // 2), None
                if done is None:  # outside the handler, whose traceback holds tensors
                    torch.cuda.empty_cache()
                    continue
                yield batch, done
                first += len(batch)

    def _rows_at_once(self, n_pos: int, patterns: int) -> int:
        shape = self.model.shape
        # All layers' activations are kept for the backward pass.
        floats = n_pos * shape.n_layers * (24 * shape.d_model + 6 * shape.d_mlp)
        floats += patterns * shape.n_layers * shape.n_heads * n_pos**2
        floats += 4 * n_pos * shape.d_vocab
        row = floats * max(4, self.model.dtype.itemsize)
        return max(1, int(min(ENOUGH, SHARE * free_bytes(self.model.device)) // row))


def asked_nodes(
    caller: str, model: Model, pairs: PromptPairs, metric: Metric
) -> AskedNodes:
    """Check pairs and metric, and run both ends.

    Raises:
        ValueError: pairs that are all identical, a metric that is constant, NaN or
            infinite, or as `PromptPairs.tokens`.
    """
    groups = pairs.tokens(model)
    if all(torch.equal(group.clean, group.corrupted) for group in groups):
        raise ValueError(
            f"{caller}: identical clean and corrupted prompts in all {len(pairs)} "
            "pairs, so no node changes. Corrupt them by exchanging the words that the "
            "behaviour depends on."
        )
    clean, corrupted = (
        _ends(caller, model, groups, metric, name) for name in ("clean", "corrupted")
    )
    if len({*clean, *corrupted}) == 1:
        raise ValueError(
            f"{caller}: the metric {metric!r} is constant: {clean[0]:.4g} on every "
            "clean and corrupted prompt, so there is nothing to attribute. Check "
            "answers and wrong answers, or corrupt what the metric depends on."
        )
    return AskedNodes(caller, model, metric, groups, clean, corrupted)


@torch.no_grad()
def _ends(
    caller: str, model: Model, groups: list[TokenPairs], metric: Metric, name: str
) -> list[float]:
    found: dict[int, float] = {}
    ask = AskedNodes(caller, model, metric, groups, [], [])

    def run(batch: TokenPairs) -> list[float]:
        run = model.run(getattr(batch, name), read=metric.reads)
        return metric(run, batch).double().tolist()

    for batch, values in ask.each(run):
        found |= dict(zip(batch.index, values, strict=True))
    bad = [i for i, value in found.items() if not abs(value) < float("inf")]
    if bad:
        raise ValueError(
            f"{caller}: the metric of the {name} run is NaN or infinite for pairs "
            f"{bad[:8]}. The model's weights or activations hold NaN, or overflow in "
            "this dtype: check ms.selfcheck(model), or load it with "
            "dtype=torch.float32."
        )
    return [found[i] for i in range(len(found))]


@dataclass(eq=False)
class Graph:
    """A run whose metric can be differentiated at some sites, more than once.

    Args:
        total: the metric, summed over prompts (they do not mix).
        seen: whole site to its value, on the graph.
    """

    total: Tensor
    seen: dict[Site, Tensor]
    _dropped: list[int | None] = field(default_factory=lambda: [None])

    def gradients(
        self, dropped: int | None = None, *, keep: bool = False
    ) -> dict[Site, Tensor] | None:
        """d metric / d site, each prompt its own; None if it depends on no site.

        Args:
            dropped: a layer whose attn_out and mlp_out pass no gradient on (the graph
                must have been made with `drops`).
            keep: the graph is needed again.
        """
        if not self.total.requires_grad:
            return None
        self._dropped[0] = dropped
        sites = list(self.seen)
        grads = torch.autograd.grad(
            self.total,
            [self.seen[site] for site in sites],
            allow_unused=True,
            retain_graph=keep,
        )
        if all(grad is None for grad in grads):
            return None
        return {
            site: torch.zeros_like(self.seen[site]) if grad is None else grad
            for site, grad in zip(sites, grads, strict=True)
        }


def graph(
    model: Model,
    tokens: Tensor,
    pairs: TokenPairs,
    metric: Metric,
    sites: Collection[Site],
    *,
    put: Mapping[Site, Tensor] | None = None,
    drops: bool = False,
) -> Graph:
    """Run a model so that its metric can be differentiated at some whole sites.

    Args:
        model: any model.
        tokens: the prompts.
        pairs: handed to the metric.
        metric: a run to one number per prompt.
        sites: where to differentiate.
        put: sites to set, and what to.
        drops: let `Graph.gradients` drop layers.
    """
    put = put or {}
    found = Graph(torch.empty(()), {})
    everything = {*sites, *put}
    if drops:
        layers = range(model.shape.n_layers)
        everything |= {Site(name, layer) for name in WRITES for layer in layers}

    def at(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            if site in put:
                x = put[site].to(x.dtype)
            if site in sites:
                # A node of its own: gradients there, not of all that used `x` before.
                x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                found.seen[site] = x
            if drops and site.name in WRITES and x.requires_grad:
                x = x.view_as(x)  # after the node, so that its own gradient is dropped
                x.register_hook(
                    lambda g: (
                        torch.zeros_like(g) if found._dropped[0] == site.layer else None
                    )
                )
            return x

        return edit

    edit = {site: at(site) for site in everything}
    with torch.enable_grad():  # a caller may be in no_grad
        run = model.run(tokens, read=metric.reads, edit=edit, grad=True)
        found.total = metric(run, pairs).sum()
    return found


def change(clean: Tensor, corrupted: Tensor) -> Tensor:
    """clean - corrupted, and 0 where both are the same, masked scores (-inf) too.

    Float32 at least: the difference of two numbers of half precision has more digits.
    """
    clean, corrupted = at_least_float32(clean), at_least_float32(corrupted)
    return torch.where(clean == corrupted, 0, clean - corrupted)


def no_gradient(caller: str, metric: Metric, what: str) -> ValueError:
    """The error for a metric that depends on none of the sites."""
    return ValueError(
        f"{caller}: the metric {metric!r} does not depend on {what}, so it has no "
        "gradient there. Choose sites and layers before what it reads."
    )
