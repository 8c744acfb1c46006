"""Confirmation: the top nodes together against as many others, and other tokens."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechsink.attribution.inference import inference
from mechsink.experiments.sink_circuits.ask import Question
from mechsink.experiments.sink_circuits.metrics import SinkAttentionOf
from mechsink.experiments.sink_circuits.runs import Ends


def confirmed(
    ask: Question,
    ends: Sequence[Ends],
    nodes: pd.DataFrame,
    clean: Float[np.ndarray, " text"],
    together: int,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The metric with sets of nodes ablated, and with other tokens.

    One row a set: nodes ("clean", "top", "random", "rest", "all", "rotated"), draw
    (number of a random set), n, components (names, blank between), value (mean over
    texts), low, high (95 % bootstrap), change (value - clean), change_low,
    change_high.

    "rest": all but the top, of those that were ablated one by one and lower the
    metric. "rotated": nothing is ablated; the tokens from the position on are rotated
    by one, so that the next token stands there.
    """
    names = ask.what.names
    effect = nodes["effect"].to_numpy()
    order = np.argsort(-effect, kind="stable")  # NaN comes last
    helpful = [names[i] for i in order if effect[i] > 0]
    n = min(together, len(names) // 2)
    top = helpful[:n]
    others = [name for name in names if name not in top]
    sets: list[tuple[str, int | None, list[str]]] = [("top", None, top)]
    generator = np.random.default_rng(seed)
    for draw in range(draws):
        sets.append(("random", draw, _alike(top, others, generator)))
    sets += [("rest", None, helpful[n:]), ("all", None, list(names))]
    rows: list[tuple[str, int | None, int, str, np.ndarray]]
    rows = [("clean", None, 0, "", clean)]
    for kind, draw, some in sets:
        found = [ask.what.without(end, ask.metric, some) for end in ends]
        values = torch.cat(found).numpy()
        rows.append((kind, draw, len(some), " ".join(some), values))
    rows.append(("rotated", None, 0, "", _rotated(ask)))
    values = np.stack([row[-1] for row in rows], axis=1)
    table = pd.DataFrame(
        {
            "nodes": [row[0] for row in rows],
            "draw": np.array([row[1] for row in rows], dtype=float),
            "n": [row[2] for row in rows],
            "components": pd.Series([row[3] for row in rows], dtype="str"),
        }
    )
    for name, numbers in (("value", values), ("change", values - clean[:, None])):
        found = inference(np.ascontiguousarray(numbers), seed)
        prefix = "" if name == "value" else "change_"
        table[name] = found["score"]
        table[f"{prefix}low"], table[f"{prefix}high"] = found["low"], found["high"]
    return table


@torch.no_grad()
def head_table(
    ask: Question, ends: Sequence[Ends], names: Sequence[str]
) -> pd.DataFrame:
    """Attention of each head to the position, clean and with some nodes ablated.

    Columns layer, head, clean, ablated: means over texts. No row for other metrics.
    """
    metric, what = ask.metric, ask.what
    if not isinstance(metric, SinkAttentionOf):
        return pd.DataFrame({name: [] for name in ("layer", "head")}, dtype=int).assign(
            clean=pd.Series(dtype=float), ablated=pd.Series(dtype=float)
        )
    found = {}
    for column, gone in (("clean", []), ("ablated", names)):
        rows = []
        for end in ends:
            run = what.model.run(
                end.pairs.clean, read=metric.reads, edit=what.edits(end, gone)
            )
            rows.append(metric.by_head(run).double().cpu())
        found[column] = torch.cat(rows).mean(0).numpy()
    keys = pd.DataFrame(list(metric.heads), columns=["layer", "head"])
    return keys.assign(**found)


def _alike(
    top: Sequence[str], others: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """As many other nodes, each of the kind of its counterpart while there are any."""
    left = list(others)
    drawn = []
    for name in top:
        same = [other for other in left if other[0] == name[0]] or left
        if not same:
            break
        drawn.append(same[int(generator.integers(len(same)))])
        left.remove(drawn[-1])
    return drawn


@torch.no_grad()
def _rotated(ask: Question) -> Float[np.ndarray, " text"]:
    at = ask.what.position
    tokens = ask.tokens.clone()
    tokens[:, at:] = tokens[:, at:].roll(-1, dims=1)
    found = []
    for pairs in ask.what.batches(tokens):
        run = ask.what.model.run(pairs.clean, read=ask.metric.reads)
        found.append(ask.metric(run, pairs).double().cpu())
    return torch.cat(found).numpy()
