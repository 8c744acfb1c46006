"""Results of one prompt each, made one result of all.

Tables come below one another and what was inferred over prompts (means, intervals,
tests) is inferred again; the numbers of each prompt stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.inference import inference
from mechsink.attribution.node_effects import NodeEffects, means_of
from mechsink.attribution.node_scores import NodeScores
from mechsink.engines.identity import ADDRESS
from mechsink.results import Result

BY = ("prompt", "batch")
"""Columns that number the prompts of a table."""


def joined(parts: Sequence[Result]) -> Result:
    """One result of the parts, its prompts numbered in their order.

    Args:
        parts: results of one prompt each, of one measurement with one setting.

    Raises:
        ValueError: a kind of result that says nothing of single prompts.
    """
    first = parts[0]
    kind = type(first)
    own: dict[str, Any] = {}
    for field in fields(first):
        values = [_without_address(getattr(part, field.name)) for part in parts]
        if field.name == "meta":
            own["meta"] = _meta(values)
        elif (kind, field.name) in _INFERRED:
            own[field.name] = _INFERRED[kind, field.name](parts)
        elif isinstance(values[0], pd.DataFrame):
            own[field.name] = _stacked(kind, values)
        elif field.type == list[float]:  # one number a prompt
            own[field.name] = [number for value in values for number in value]
        elif all(value == values[0] for value in values[1:]):
            own[field.name] = values[0]
        else:
            raise _not_joined(kind, f"its {field.name} differs between prompts")
    return kind(**own)


def _without_address(value: Any) -> Any:
    """A metric of one's own is called by another address in every process."""
    return ADDRESS.sub("", value) if isinstance(value, str) else value


def _stacked(kind: type, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    by = next((name for name in BY if name in tables[0]), None)
    if by is None:
        raise _not_joined(kind, "it has no row of a prompt of its own")
    if any(table[by].nunique() > 1 for table in tables):
        raise _not_joined(kind, "a part has several prompts")
    numbered = [table.assign(**{by: n}) for n, table in enumerate(tables)]
    return pd.concat(numbered, ignore_index=True)


def _meta(metas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the first, with the tokens of all."""
    meta = dict(metas[0])
    for key in ("n_prompts", "n_tokens"):
        meta[key] = sum(each[key] for each in metas)
    meta["tokens"] = [row for each in metas for row in each["tokens"]]
    if "pairs" in meta["settings"]:
        meta["settings"] = {**meta["settings"], "pairs": len(metas)}
    return meta


def _edges(parts: Sequence[EdgeScores]) -> pd.DataFrame:
    ends = parts[0].table[["source", "target"]]
    if any(not ends.equals(part.table[["source", "target"]]) for part in parts[1:]):
        raise _not_joined(EdgeScores, "its edges differ between prompts")
    scores = np.stack([part.table["score"].to_numpy() for part in parts])
    return pd.concat([ends, inference(scores, _seed(parts))], axis=1)


def _nodes(parts: Sequence[NodeScores]) -> pd.DataFrame:
    nodes = parts[0].nodes
    inferred = ["score", "low", "high", "p_value", "q_value", "magnitude"]
    keys = nodes.drop(columns=[name for name in inferred if name in nodes])
    scores = np.stack([part.nodes["score"].to_numpy() for part in parts])
    table = pd.concat([keys, inference(scores, _seed(parts))], axis=1)
    if "magnitude" in nodes:
        sizes = np.stack([part.nodes["magnitude"].to_numpy() for part in parts])
        table["magnitude"] = sizes.mean(0)
    return table


def _node_effects(parts: Sequence[NodeEffects]) -> pd.DataFrame:
    by_prompt = _stacked(NodeEffects, [part.by_prompt for part in parts])
    return means_of(by_prompt, _seed(parts))


_INFERRED: dict[tuple[type, str], Callable[[Any], pd.DataFrame]] = {
    (EdgeScores, "table"): _edges,
    (NodeScores, "nodes"): _nodes,
    (NodeEffects, "table"): _node_effects,
}


def _seed(parts: Sequence[Result]) -> int:
    return parts[0].meta["settings"]["seed"]


def _not_joined(kind: type, why: str) -> ValueError:
    return ValueError(
        f"spread: a {kind.__name__} can't be put together from single prompts: {why}. "
        "Allowed: measurements with a number for each prompt, such as ms.patch_sweep, "
        "ms.path_patch, ms.ablate, ms.logit_attribution, ms.eap_ig, ms.exact_edges, "
        "ms.attribution_patching, ms.node_effects or ms.sink_scores."
    )
