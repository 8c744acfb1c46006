"""Runs with edges cut: targets that read a source's other value, and nobody else.

A cut edge gives its target the source's reference write (of the corrupted run, say)
in place of what the source writes in this very run; all that follows is computed. So
a circuit is run by cutting every edge outside it, and one edge is patched by cutting
it alone. This is exact: no gradient, no approximation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsink.attribution.short_runs import metric_of
from mechsink.attribution.wires import INPUT, LOGITS, Wires
from mechsink.models.memory import free_bytes
from mechsink.models.wiring import PORTS, Read, Wiring
from mechsink.prompts import TokenPairs
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site


@dataclass(eq=False)
class _Cut:
    """State of one run: what sources have written so far, less their reference."""

    wires: Wires
    wiring: Wiring
    cut: Tensor  # [row or 1, source, target], 1 where cut
    reference: Tensor  # [row, source, pos, d_model]
    moved: Tensor  # the same shape: what was written here less the reference
    used: list[bool]  # source by source: whether any target has it cut
    stream: Tensor | None = None
    attn_out: Tensor | None = None

    def wrote(self, names: list[str], value: Tensor) -> None:
        """Record sources' writes, [row source pos d_model]."""
        first = self.wires.source_index[names[0]]
        some = slice(first, first + len(names))
        torch.sub(value, self.reference[:, some], out=self.moved[:, some])

    def missing(self, targets: list[str]) -> Tensor | None:
        """What cut edges take from the residual of neighbouring targets.

        [row target pos d_model]; None where none is cut.
        """
        first = self.wires.target_index[targets[0]]
        n = int(self.wires.real[:, first].sum())
        cut = self.cut[:, :n, first : first + len(targets)]
        live = cut.any(0).any(-1).nonzero()[:, 0]  # sources that are cut somewhere
        if not len(live):
            return None
        if len(live) == n:
            moved = self.moved[:, :n]
        else:
            moved, cut = self.moved[:, live], cut[:, live]
        shape = moved.shape[2:]
        out = cut.to(moved.dtype).transpose(1, 2) @ moved.flatten(2)
        return out.unflatten(2, shape)


@torch.no_grad()
def cut_metric(
    model: Model,
    wires: Wires,
    wiring: Wiring,
    pairs: TokenPairs,
    metric: Metric,
    cut: Bool[Tensor, "#row source target"],
    reference: Float[Tensor, "row source pos d_model"],
) -> Float[Tensor, " row"]:
    """The metric of clean prompts run with some edges cut.

    Args:
        model, wires, wiring: of one another.
        pairs: one row a run; only its clean prompts are run.
        metric: a run to one number per prompt.
        cut: True where target reads `reference` of source; one row each, or a single
            one for all. Edges that cannot be must be False.
        reference: what cut edges carry: the corrupted run's writes, zeros, a mean.

    Returns:
        The metric in float64, on the CPU.
    """
    state = _Cut(
        wires,
        wiring,
        cut,
        reference,
        torch.zeros_like(reference),
        cut.any(0).any(-1).tolist(),
    )
    edits = _edits(state)
    values, _ = metric_of(model, wiring, pairs.clean, pairs, metric, edit=edits)
    return values


def cut_rows(model: Model, wires: Wires, n_pos: int) -> int:
    """Rows of `n_pos` tokens that one run with cuts can take, by the free memory."""
    shape = model.shape
    floats = n_pos * (12 * shape.d_model + 4 * shape.d_mlp + shape.d_vocab)
    floats += 2 * n_pos**2 * shape.n_heads + wires.real.size
    floats += 4 * len(wires.sources) * n_pos * shape.d_model
    row = floats * max(4, model.dtype.itemsize)
    return max(1, int(min(2**30, 0.25 * free_bytes(model.device)) // row))


def _edits(state: _Cut) -> dict[Site, Edit]:
    wires, wiring = state.wires, state.wiring
    edits: dict[Site, Edit] = {}
    for layer in range(wires.n_layers):
        sources, targets = (
            wires.attention_sources(layer),
            wires.attention_targets(layer),
        )
        edits[Site("resid_pre", layer)] = _see_stream(state, layer)
        for port in PORTS if targets else ():
            mine = [name for name in targets if name.endswith(f"<{port}>")]
            if _any_cut(state, mine):
                read = wiring.attention_read(layer, port)
                edits[Site(port, layer)] = _reread_heads(state, read, mine)
        if targets and _any_used(state, sources):
            edits[Site("z", layer)] = _see_heads(state, layer, sources)
        if not wires.has_mlp:
            continue
        if _any_cut(state, [f"m{layer}"]):
            edits[Site("attn_out", layer)] = _see_attn_out(state)
            read = wiring.mlp_read(layer)
            edits[Site("mlp_normed", layer)] = _reread_mlp(state, read, f"m{layer}")
        if _any_used(state, [f"m{layer}"]):
            edits[Site("mlp_out", layer)] = _see_mlp(state, f"m{layer}")
    if _any_cut(state, [LOGITS]):
        edits[Site("resid_post", wires.n_layers - 1)] = _reread_last(state)
    return edits


def _any_cut(state: _Cut, targets: list[str]) -> bool:
    first = state.wires.target_index[targets[0]]
    return bool(state.cut[:, :, first : first + len(targets)].any())


def _any_used(state: _Cut, sources: list[str]) -> bool:
    return any(state.used[state.wires.source_index[name]] for name in sources)


def _see_stream(state: _Cut, layer: int) -> Edit:
    def edit(x: Tensor) -> Tensor:
        state.stream = x
        if layer == 0 and state.used[0]:
            state.wrote([INPUT], x[:, None])
        return x

    return edit


def _see_attn_out(state: _Cut) -> Edit:
    def edit(x: Tensor) -> Tensor:
        state.attn_out = x
        return x

    return edit


def _see_heads(state: _Cut, layer: int, names: list[str]) -> Edit:
    def edit(z: Tensor) -> Tensor:
        parts = state.wiring.attention_write(layer).parts(z)
        state.wrote(names, parts.transpose(1, 2))
        return z

    return edit


def _see_mlp(state: _Cut, name: str) -> Edit:
    def edit(x: Tensor) -> Tensor:
        state.wrote([name], x[:, None])
        return x

    return edit


def _reread_heads(state: _Cut, read: Read, targets: list[str]) -> Edit:
    def edit(site: Tensor) -> Tensor:
        less = state.missing(targets)
        assert state.stream is not None and less is not None
        site = site.clone()
        first = state.wires.target_index[targets[0]]
        for n in range(len(targets)):
            if state.cut[:, :, first + n].any():  # others stay as computed, to the bit
                site[:, :, n] = read.head(n, state.stream - less[:, n]).to(site.dtype)
        return site

    return edit


def _reread_mlp(state: _Cut, read: Read, target: str) -> Edit:
    def edit(site: Tensor) -> Tensor:
        less = state.missing([target])
        assert state.stream is not None and less is not None
        stream = state.stream
        if not state.wires.is_parallel:
            assert state.attn_out is not None
            stream = stream + state.attn_out
        return read(stream - less[:, 0]).to(site.dtype)

    return edit


def _reread_last(state: _Cut) -> Edit:
    def edit(x: Tensor) -> Tensor:
        less = state.missing([LOGITS])
        assert less is not None
        return (x - less[:, 0]).to(x.dtype)

    return edit
