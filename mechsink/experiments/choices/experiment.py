"""The circuit of multiple choice: which heads say the label, and by what.

Source: Lieberum et al. 2023, "Does circuit analysis interpretability scale?"
(arXiv:2307.09458), here as one function for any model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.attribution.logits import batches, checked
from mechsink.attribution.low_rank import low_rank
from mechsink.attribution.subspaces import Subspace, subspaces
from mechsink.experiments.choices.nodes import (
    Node,
    described,
    direct_parts,
    patched_effects,
)
from mechsink.experiments.choices.prompts import Choices, LabelIsRight, LabelMargin
from mechsink.intervals import wilson
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompt_sets.sets import PromptSet
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sites import Site

CUT = ("labels", "site", "layer", "head", "rank", "explained", "before", "before_low",
       "before_high", "after", "after_low", "after_high", "change", "change_low",
       "change_high", "accuracy_before", "accuracy_before_low", "accuracy_before_high",
       "accuracy_after", "accuracy_after_low", "accuracy_after_high")  # fmt: skip


@dataclass(frozen=True, eq=False)
class MultipleChoiceResult(Result):
    """Which nodes say the right label, what they look at, and what they need.

    The margin is the right label's logit less the mean of the other labels'. Every
    row has `labels`: "given", or "other" for the prompts of `generalise`.

    `table`, one row a head or MLP: labels, layer, component; direct: its part of the
      margin (`logit_attribution`); is_output: among the largest |direct| of its
      prompts. For the output nodes of the given prompts also, NaN elsewhere:
      patched_direct and total: how much the margin falls, directly and in all, when
      the node has its value of another question; category, with the attention of the
      last token behind it (head_categories.py); category is "MLP" for MLPs and ""
      where not measured: to_labels (all labels), to_last (itself), then shares of the
      attention to labels: to_correct, follows (how often the right one has the most),
      to_one (the most that a label has where it is not right), uneven (largest
      distance from an equal share), all 0 to 1. direct, patched_direct and total have
      NAME_low and NAME_high, 95 % bootstrap intervals over prompts.
    `low_rank`, of the correct-letter heads, as in `LowRank`: queries cut at the last
      position, keys and values at the labels. Directions of "other" are those fitted
      on the given prompts. Empty where no head is of that kind.
    `accuracy`: labels, n, accuracy (the right label's logit is the largest of the
      labels'), low, high (Wilson), margin, margin_low, margin_high, error (largest
      relative error of the sum of parts).

    Examples:
        >>> from toy_tasks.planted import LABEL_POSITIONS
        >>> case = ms.planted("letter", n_prompts=24)
        >>> pairs = case.pairs
        >>> choices = ms.Choices.at(pairs.clean, LABEL_POSITIONS, pairs.answers)
        >>> found = ms.multiple_choice(case.model, choices, n_nodes=2)
        >>> found.outputs[["layer", "component", "category"]].values.tolist()
        [[1, 'h0', 'correct letter'], [0, 'h0', 'single letter']]
        >>> ax = found.plot()
    """

    low_rank: pd.DataFrame
    accuracy: pd.DataFrame

    @property
    def outputs(self) -> pd.DataFrame:
        """Output nodes of the given prompts, the largest |direct| first.

        `confirmed`: the total effect has the sign of `direct`, interval and all.
        """
        chosen = self.table["is_output"] & (self.table["labels"] == "given")
        rows = self.table.loc[chosen]
        order = np.argsort(-rows["direct"].abs().to_numpy(dtype=float), kind="stable")
        rows = rows.iloc[order]
        up = (rows["direct"] > 0) & (rows["total_low"] > 0)
        down = (rows["direct"] < 0) & (rows["total_high"] < 0)
        return rows.assign(confirmed=up | down)

    def heads(self, kind: str) -> list[tuple[int, int]]:
        """Output heads of a category, as (layer, head).

        Args:
            kind: "correct letter", "single letter", "uniform", "amplification" or
                "other".
        """
        rows = self.outputs
        rows = rows.loc[rows["category"] == kind]
        pairs = zip(rows["layer"], rows["component"], strict=True)
        return [(int(layer), int(name[1:])) for layer, name in pairs]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Output nodes: direct part of the margin, coloured by category.

        Args:
            ax: where to draw; default: a new figure.
        """
        from matplotlib.patches import Patch

        rows = self.outputs.iloc[::-1]
        kinds = list(dict.fromkeys(self.outputs["category"]))
        colours = dict(zip(kinds, plotting.colours(len(kinds)), strict=True))
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.8 + 0.18 * len(rows))
            names = [
                _name((int(layer), component))
                for layer, component in zip(
                    rows["layer"], rows["component"], strict=True
                )
            ]
            values = rows[["direct_low", "direct", "direct_high"]].to_numpy(dtype=float)
            around = np.abs(np.diff(values, axis=1)).T
            ax.barh(
                names,
                values[:, 1],
                xerr=np.nan_to_num(around),
                color=[colours[kind] for kind in rows["category"]],
                error_kw={"elinewidth": 0.6},
            )
            shown = [
                Patch(color=colour, label=kind) for kind, colour in colours.items()
            ]
            ax.axvline(0, color="0.6", lw=0.6)
            ax.set(xlabel="direct part of the margin, logits")
            ax.legend(handles=shown, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            return ax


@any_model
def multiple_choice(
    model: Model,
    prompts: Choices | PromptSet,
    *,
    generalise: Choices | PromptSet | None = None,
    n_nodes: int = 10,
    ranks: Sequence[int] = (0, 1, 2, 3, 4),
    centred: bool = False,
    seed: int = 0,
) -> MultipleChoiceResult:
    """Find the nodes that say the right label, classify them and compress them.

    1. The margin at the last position is taken apart into heads and MLPs, the final
       norm's scale held. 2. The `n_nodes` of largest |mean part| are the output
       nodes; each is given its value of another question, which shows its direct and
       its total effect. 3. Heads among them are named by what the last token attends
       to: "correct letter", "single letter", "uniform", "amplification" or "other";
       `head_categories.category` states the rules, whose thresholds are ours. 4. Of
       correct-letter heads, queries (at the last position), keys and values (at the
       labels) are cut to a few directions. 5. The same on `generalise`, with the nodes
       and the directions of the given prompts.

    Args:
        model: any model whose weights are at hand, with patterns.
        prompts: `ms.prompt_sets.multiple_choice(model, n)`, or `Choices`.
        generalise: prompts with other labels, such as labels="random"; default none.
        n_nodes: how many output nodes.
        ranks: how many directions to keep; the paper keeps 3.
        centred: as in `low_rank`.
        seed: of bootstraps and of drawing another question where none is given.

    Returns:
        A `MultipleChoiceResult`, one row a head or MLP.

    Raises:
        ValueError: no such number of nodes; bad ranks; prompts that do not fit.

    Source: Lieberum et al. 2023 (arXiv:2307.09458), sections 3 and 4.

    Examples:
        >>> from toy_tasks.planted import LABEL_POSITIONS
        >>> case = ms.planted("letter", n_prompts=24)
        >>> pairs = case.pairs
        >>> choices = ms.Choices.at(pairs.clean, LABEL_POSITIONS, pairs.answers)
        >>> found = ms.multiple_choice(case.model, choices, n_nodes=2)
        >>> found.heads("correct letter"), found.accuracy.accuracy.tolist()
        ([(1, 0)], [1.0])
    """
    started = time.perf_counter()
    known = checked(model, "multiple_choice")
    if not known.has_attention or "pattern" not in model.shape.sites:
        raise ValueError(
            f"multiple_choice: {model.name} shows no patterns, by which heads "
            "are classified. ms.logit_attribution and ms.low_rank need none."
        )
    n_all = model.shape.n_layers * (model.shape.n_heads + known.has_mlp)
    if not 1 <= n_nodes <= n_all:
        raise ValueError(
            f"multiple_choice: n_nodes={n_nodes}. Allowed: 1 to the {n_all} heads and "
            "MLPs of this model; 10 is usual."
        )
    asked = {"given": _choices(model, prompts)}
    if generalise is not None:
        asked["other"] = _choices(model, generalise)
    parts = {name: direct_parts(model, choices) for name, choices in asked.items()}
    direct = {name: _direct(nodes, seed) for name, (nodes, _) in parts.items()}
    outputs = _largest(direct["given"], n_nodes)
    tables, cuts, accuracies = [], [], []
    fitted: dict[Site, Subspace] | None = None
    heads: list[Node] = []
    for name, choices in asked.items():
        table = _with_outputs(model, choices, direct[name], outputs, n_nodes, seed)
        table.insert(0, "labels", name)
        tables.append(table)
        accuracy = {**_accuracy(model, choices, seed), "error": parts[name][1]}
        accuracies.append({"labels": name, **accuracy})
        if name == "given":
            rows = table.loc[table["category"] == "correct letter"]
            heads = list(zip(rows["layer"], rows["component"], strict=True))
        if not heads:
            continue
        where, prompt_pairs = _where(model, choices, heads), choices.alone()
        if fitted is None:
            fitted = subspaces(
                model, prompt_pairs, list(where), positions=where, centred=centred
            )
        cut = low_rank(
            model, prompt_pairs, list(where), list(ranks), LabelMargin(choices),
            positions=where, fitted=fitted, right=LabelIsRight(choices),
            centred=centred, seed=seed,
        ).table  # fmt: skip
        cut.insert(0, "labels", name)
        cuts.append(cut)
    meta = provenance(
        model,
        [tokens[None] for choices in asked.values() for tokens in choices.tokens],
        duration=time.perf_counter() - started,
        n_nodes=n_nodes,
        ranks=list(ranks),
        centred=centred,
        seed=seed,
        n_prompts={name: len(choices) for name, choices in asked.items()},
        metric="label_margin",
    )
    compressed = pd.concat(cuts, ignore_index=True) if cuts else _no_cuts()
    return MultipleChoiceResult(
        pd.concat(tables, ignore_index=True),
        meta,
        compressed,
        pd.DataFrame(accuracies),
    )


def _choices(model: Model, prompts: Choices | PromptSet) -> Choices:
    return prompts if isinstance(prompts, Choices) else Choices.of_set(model, prompts)


def _direct(nodes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Means over prompts of each node's part, with intervals."""
    found = inference(nodes.to_numpy(dtype=float).copy(), seed)
    return pd.DataFrame(
        {
            "layer": [int(node[0]) for node in nodes.columns],
            "component": [str(node[1]) for node in nodes.columns],
            "direct": found["score"].to_numpy(),
            "direct_low": found["low"].to_numpy(),
            "direct_high": found["high"].to_numpy(),
        }
    )


def _largest(direct: pd.DataFrame, n: int) -> list[Node]:
    sizes = direct["direct"].abs().to_numpy(dtype=float)
    rows = direct.iloc[np.argsort(-sizes, kind="stable")[:n]]
    return list(zip(rows["layer"], rows["component"], strict=True))


def _with_outputs(
    model: Model,
    choices: Choices,
    direct: pd.DataFrame,
    outputs: Sequence[Node],
    n_nodes: int,
    seed: int,
) -> pd.DataFrame:
    """All nodes, with what only output nodes are asked for."""
    nodes = list(zip(direct["layer"], direct["component"], strict=True))
    lows = dict(zip(nodes, direct["direct_low"].tolist(), strict=True))
    falls = patched_effects(model, choices, outputs, seed)
    rows = [
        {
            "layer": node[0],
            "component": node[1],
            **described(model, choices, node, lows[node], falls[node], seed),
        }
        for node in outputs
    ]
    largest = set(_largest(direct, n_nodes))
    table = direct.assign(is_output=[node in largest for node in nodes])
    table = table.merge(pd.DataFrame(rows), on=["layer", "component"], how="left")
    return table.fillna({"category": ""})


def _where(
    model: Model, choices: Choices, heads: Sequence[Node]
) -> dict[Site, list[int] | Tensor]:
    """Sites of correct-letter heads and where they are cut."""
    group = model.shape.n_heads // model.shape.n_kv_heads
    where: dict[Site, list[int] | Tensor] = {}
    for layer, component in heads:
        head = int(component[1:])
        where[Site("q", layer, head=head)] = [-1]
        for name in ("k", "v"):
            where[Site(name, layer, kv_head=head // group)] = choices.places
    return where


def _accuracy(model: Model, choices: Choices, seed: int) -> dict[str, int | float]:
    right, margin = LabelIsRight(choices), LabelMargin(choices)
    hits, margins = 0, []
    for batch in batches(model, choices.alone().tokens(model)):
        run = model.run(batch.clean)
        hits += int(right(run, batch).sum())
        margins += margin(run, batch).tolist()
    found = inference(np.array(margins)[:, None], seed).iloc[0]
    low, high = wilson(hits, len(choices))
    return {
        "n": len(choices),
        "accuracy": hits / len(choices),
        "low": low,
        "high": high,
        "margin": float(found["score"]),
        "margin_low": float(found["low"]),
        "margin_high": float(found["high"]),
    }


def _no_cuts() -> pd.DataFrame:
    text = {"labels": "str", "site": "str", "rank": "int64"}
    return pd.DataFrame(columns=list(CUT)).astype(
        {name: text.get(name, "float64") for name in CUT}
    )


def _name(node: Node) -> str:
    layer, component = node
    return f"m{layer}" if component == "mlp" else f"a{layer}.{component}"
