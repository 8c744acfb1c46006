"""Secondary attention sinks: later tokens that come to resemble the first sink.

Layers are numbered as in the paper: layer l is the output of block l, the site
resid_post of layer l; the embedding is not counted. `residual_norms` and
`massive_activations` count inputs, so their layer is this one plus 1. Block l + 1
is the first whose attention reads layer l.

Source: Secondary Attention Sinks (arXiv:2512.22213).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.measure import as_batches, as_positions, check_positions
from mechsink.sinks.secondary.reading import read_states
from mechsink.sinks.secondary.rows import Prompt, Row, as_tables
from mechsink.sinks.secondary.rules import active_range, label_rule, primary_of


@dataclass(frozen=True, eq=False)
class SecondarySinks(Result):
    """Tokens whose state resembles the primary sink's, one row a token.

    `table`: batch (prompt), pos, token, string, label ("secondary", "bos_sink" or
    "noise"), l_start (layer of creation), lifetime (number of layers), is_contiguous,
    norm (of the state at l_start), norm_jump (its rise over the layer before), both
    in units of the residual stream; value_before, value_after: ||v||, mean over
    key-value heads, over that of the prompt's ordinary tokens (1: like them), in
    block l_start, which does not see the creation yet, and in block l_start + 1;
    score_mean, score_max: attention received, a share averaged over strictly later
    queries, then the mean and the largest over heads and over the blocks that read
    it alive. NaN: no later query, no such block, or no attention there.
    `layers`: batch, pos, layer, cosine, norm, score_mean, score_max (in block
    layer + 1), for each layer of each token's life.
    `primaries`: batch, pos, token, string, start, end (active layers, end left out),
    norm (mean over them), and the bounds of the labels, more_than < lifetime <
    fewer_than, with the rule that they come from.

    Attributes:
        n_layers: of the model.
        cosine: the threshold.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> found = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> found.levels().values.tolist()  # l_start, lifetime, count
        [[3, 2, 2]]
        >>> found.primaries[["pos", "start", "end"]].values.tolist()
        [[0, 1, 5]]
        >>> ax = found.plot()
    """

    layers: pd.DataFrame
    primaries: pd.DataFrame
    n_layers: int
    cosine: float

    def labelled(self, label: str = "secondary") -> pd.DataFrame:
        """Rows of one label.

        Args:
            label: "secondary", "bos_sink" or "noise".
        """
        found: Any = self.table[self.table["label"] == label]
        return found.reset_index(drop=True)

    def levels(self, label: str = "secondary") -> pd.DataFrame:
        """Sink levels: how many tokens share (l_start, lifetime); column count.

        Args:
            label: whose tokens are counted.
        """
        found: Any = self.labelled(label).groupby(["l_start", "lifetime"])
        return found.size().rename("count").reset_index()

    def plot(self, ax: Axes | None = None, *, label: str = "secondary") -> Axes:
        """Heat map of log(1 + count) over layer of creation and lifetime.

        Args:
            ax: where to draw; default: a new figure.
            label: whose tokens are counted.
        """
        primaries: Any = self.primaries
        start, end = int(primaries["start"].min()), int(primaries["end"].max())
        grid = self.levels(label).pivot(
            index="lifetime", columns="l_start", values="count"
        )
        grid = grid.reindex(index=range(1, end - start + 1), columns=range(start, end))
        grid = grid.rename_axis(index="lifetime (layers)", columns="layer of creation")
        shown: Any = np.log1p(grid.astype(float).fillna(0.0))
        limits = (0.0, max(1.0, float(shown.to_numpy().max())))
        text = f"{label} sinks,\nlog(1 + number of tokens)"
        with plotting.theme():
            ax = ax or plotting.new_axes()
            return plotting.heat_map(ax, shown, text, limits=limits)


@any_model
def secondary_sinks(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    candidates: Sequence[int] = (0, 1),
    cosine: float = 0.9,
    more_than: int | float | None = None,
    fewer_than: int | float | None = None,
    active: tuple[int, int] | None = None,
) -> SecondarySinks:
    """Find tokens that turn into sinks in the middle layers, and for how long.

    For each prompt: the primary is the candidate of the largest mean norm; its
    active layers run from the layer after the norm's largest rise to the one after
    its largest fall; a later token is a sink in the active layers where |cosine|
    with the primary's state exceeds `cosine`. Its number of layers decides the
    label: `secondary` if more_than < layers < fewer_than, `bos_sink` from
    fewer_than on, else `noise`.

    Args:
        model: any model of two layers or more.
        tokens: Int[batch pos], or a list of such tensors; one row is one prompt.
        candidates: where the primary may stand; the paper takes (0, 1), and
            (0, 1, 2) with a chat template.
        cosine: threshold, exclusive.
        more_than: lower bound of a secondary's lifetime in layers, exclusive. By
            default the published 4, in models of 24 layers or more; in smaller ones a
            fraction of the active range that is ours, (end - start) / 7.
        fewer_than: upper bound, exclusive; likewise L - 15 or .65 (end - start).
        active: layers [start, end) to look in, for models whose primary grows in
            several steps; default: each prompt's own, as published.

    Returns:
        `SecondarySinks`, one row a token. Detection needs norms and cosines alone; a
        second pass over the prompts that have such tokens reads their attention. Memory
        is linear in length.

    Raises:
        ValueError: no tokens, no token after the candidates, a model of one layer,
            layers that it lacks, or NaN in the residual stream.

    Source: Secondary Attention Sinks (arXiv:2512.22213).

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> found = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> found.table[["pos", "label", "l_start", "lifetime"]].values.tolist()
        [[3, 'secondary', 3, 2], [7, 'secondary', 3, 2]]
    """
    started = time.perf_counter()
    _check_layers(model.shape.n_layers, active)
    candidates = as_positions(candidates)
    batches = as_batches(model, tokens)
    check_positions(batches, [*candidates, max(candidates) + 1])
    bounds = {"more_than": more_than, "fewer_than": fewer_than}
    found: list[Mapping[str, list[Row]]] = []
    for batch in batches:
        states = read_states(batch, candidates)
        for row, number in enumerate(batch.prompts):
            norms, cosines = states.norms[row], states.cosines[row]
            at = primary_of(norms[:, list(candidates)])
            start, end = active or active_range(norms[:, candidates[at]])
            prompt = Prompt(
                number=number,
                tokens=batch.tokens[row : row + 1],
                strings=model.to_strings(batch.tokens[row].cpu()),
                norms=norms,
                cosines=cosines[:, at],
                primary=candidates[at],
                active=(start, end),
                rule=label_rule(model.shape.n_layers, start, end, **bounds),
            )
            found.append(prompt.rows(model, cosine))
    tables = as_tables(found)
    meta = provenance(
        model,
        [batch.tokens for batch in batches],
        duration=time.perf_counter() - started,
        candidates=candidates,
        cosine=cosine,
        active=active,
        rule=sorted(set(tables["primaries"]["rule"])),
        **bounds,
    )
    n_layers = model.shape.n_layers
    return SecondarySinks(**tables, meta=meta, n_layers=n_layers, cosine=cosine)


def _check_layers(n_layers: int, active: tuple[int, int] | None) -> None:
    if n_layers < 2:
        raise ValueError(
            "secondary_sinks: this model has 1 layer, so no norm rises from layer to "
            "layer. Allowed: two layers or more; ms.massive_activations takes any."
        )
    if active is not None and not 0 <= active[0] < active[1] <= n_layers:
        raise ValueError(
            f"secondary_sinks: active={active}. Allowed: (start, end) with 0 <= start "
            f"< end <= {n_layers}, block outputs, the end left out."
        )
