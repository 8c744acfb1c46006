"""Where in an MLP a secondary sink comes to resemble the primary one.

Layers are numbered as in `secondary.py`: the MLP of block l writes what makes the
secondaries of layer l.

Source: Secondary Attention Sinks (arXiv:2512.22213), MLP creation test.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.secondary.primary import prompts_of
from mechsink.sinks.secondary.push import EFFECTIVE, directions
from mechsink.sinks.secondary.sinks import SecondarySinks, secondary_sinks
from mechsink.sinks.secondary.spots import (
    GROUPS,
    STAGES,
    Spot,
    choose_spots,
    read_spots,
)


@dataclass(frozen=True, eq=False)
class MLPCreation(Result):
    """Likeness of secondary sinks and controls to the primary, inside one MLP.

    `table`: batch (prompt), pos, token, layer, group ("sink", "same token" or
    "random"), stage, cosine: that of the position's vector with the primary's, at
    the same stage of the same layer's MLP in the same prompt. Stages in order: x
    (normed input), gate, up, act (of the gate), post (act * up; without a gate, the
    neurons after the nonlinearity), y (output). NaN at stages that the model has no
    site for, as gate, up and act always are so far, and where a vector is zero.
    `directions`: layer, source, component, explained, sign, scale, cosine, norm.
    Principal components of the centred vectors of sinks and controls at a source
    (attn_out, resid_mid, or mlp_normed, which is x), `explained` their share of the
    variance; each unit component times sign * scale replaces x, and `cosine`
    compares what the MLP then writes, of norm `norm`, with the primaries' y.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> sinks = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> made = ms.mlp_creation(model, case.tokens, sinks)
        >>> list(made.summary()), list(made.directions)
        (['layer', 'stage', 'group', 'mean', 'count'], ['layer', 'source', 'component',
        'explained', 'sign', 'scale', 'cosine', 'norm'])
    """

    directions: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Mean cosine by layer, stage and group, with the number of positions."""
        table: Any = self.table.assign(stage=_staged(self.table["stage"]))
        means = table.groupby(["layer", "stage", "group"], observed=True)["cosine"]
        return means.agg(["mean", "count"]).reset_index()

    def effective(self, threshold: float = EFFECTIVE) -> pd.DataFrame:
        """How many components make the primary's output, with either sign.

        Columns layer, source, scale, effective (|cosine| > threshold), components.

        Args:
            threshold: |cosine| from which a component counts.
        """
        keys = ["layer", "source", "scale", "component"]
        size: Any = self.directions["cosine"].abs()
        best: Any = self.directions.assign(best=size).groupby(keys)["best"].max()
        counts = best.gt(threshold).groupby(keys[:3]).agg(["sum", "count"])
        counts.columns = ["effective", "components"]
        return counts.reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Cosine by stage, one dot a position, sinks beside controls.

        Args:
            ax: where to draw; default: a new figure.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes()
            shown: Any = self.table.dropna(subset=["cosine"])
            stages = [stage for stage in STAGES if stage in set(shown["stage"])]
            groups = [g for g in GROUPS if g in set(shown["group"])]
            shades = plotting.colours(max(1, len(groups)))
            for number, (group, shade) in enumerate(zip(groups, shades, strict=False)):
                rows = shown[shown["group"] == group]
                x = rows["stage"].map(stages.index) + 0.18 * (number - 1)
                ax.plot(x, rows["cosine"], ".", color=shade, alpha=0.6, label=group)
            ax.axhline(0, color="0.6", lw=0.8)
            ax.set(ylabel="cosine with the primary", xlabel="stage of the MLP")
            ax.set_xticks(range(len(stages)), stages)
            ax.set_ylim(-1.05, 1.05)
            ax.legend()
        return ax


@any_model
def mlp_creation(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    sinks: SecondarySinks | None = None,
    *,
    labels: Sequence[str] = ("secondary",),
    scales: Sequence[float] = (1.0, 4.0, 16.0, 64.0),
    n_components: int = 10,
    seed: int = 0,
) -> MLPCreation:
    """Compare sinks with the primary at each stage of the MLP that makes them.

    If the MLP makes them, cosines are high at its late stages alone. For each sink
    there is one control of its layer: an undetected later token of the same id, from
    any prompt, while there are such; else a random undetected one.

    Args:
        model: any model; stages without a site are NaN.
        tokens: Int[batch pos], or a list of such tensors; one row is one prompt.
        sinks: what `secondary_sinks` found in the same tokens; default: asked for
            with its defaults.
        labels: which of them to test.
        scales: sizes of the pushed components, in units of the normed input.
        n_components: at most so many a source.
        seed: of the choice of controls.

    Returns:
        An `MLPCreation`, one row a prompt, position and stage.

    Raises:
        ValueError: no sink of these labels, no scale or component, or sinks of other
            tokens.

    Source: Secondary Attention Sinks (arXiv:2512.22213). Ours: cosines are taken with
    the primary of the same prompt, where it stands; y of several prompts is the mean
    of unit vectors.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> sinks = ms.secondary_sinks(model, case.tokens, more_than=1, fewer_than=4)
        >>> made = ms.mlp_creation(model, case.tokens, sinks)
        >>> list(made.table)
        ['batch', 'pos', 'token', 'layer', 'group', 'stage', 'cosine']
    """
    started = time.perf_counter()
    if not scales or min(scales) <= 0 or n_components < 1:
        raise ValueError(
            f"mlp_creation: scales={list(scales)}, n_components={n_components}. Give "
            "at least one scale above 0 and at least one component."
        )
    sinks = secondary_sinks(model, tokens) if sinks is None else sinks
    prompts = dict(prompts_of(model, tokens, sinks))
    spots = choose_spots(sinks, prompts, labels, seed)
    vectors = read_spots(model, prompts, sinks, spots)
    table = pd.DataFrame(
        [row for spot in spots for row in _rows(spot, vectors.cosines[spot])]
    )
    pushed = directions(model, vectors, spots, scales, n_components)
    meta = provenance(
        model,
        tokens,
        duration=time.perf_counter() - started,
        labels=labels,
        scales=scales,
        n_components=n_components,
        seed=seed,
        secondary_sinks=sinks.meta["settings"],
    )
    return MLPCreation(table, meta, pushed)


def _rows(spot: Spot, cosines: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {**vars(spot), "stage": stage, "cosine": cosines[stage]} for stage in STAGES
    ]


def _staged(column: Any) -> Any:
    return pd.Categorical(column, categories=list(STAGES), ordered=True)
