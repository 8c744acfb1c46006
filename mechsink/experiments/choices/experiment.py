"""The circuit of multiple choice: which heads say the label, and by what.

Source: Lieberum et al. 2023, "Does circuit analysis interpretability scale?"
(arXiv:2307.09458), here as one function for any model.
"""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

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
from mechsink.experiments.choices.result import MultipleChoiceResult
from mechsink.intervals import wilson
from mechsink.models.any_model import any_model
from mechsink.prompt_sets.sets import PromptSet
from mechsink.provenance import provenance
from mechsink.run import Model
from mechsink.sites import Site

CUT = ("labels", "site", "layer", "head", "rank", "explained", "before", "before_low",
       "before_high", "after", "after_low", "after_high", "change", "change_low",
       "change_high", "accuracy_before", "accuracy_before_low", "accuracy_before_high",
       "accuracy_after", "accuracy_after_low", "accuracy_after_high")  # fmt: skip


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
