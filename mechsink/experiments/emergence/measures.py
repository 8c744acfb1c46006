"""What the emergence study reads off a finished run: where its sink is, how strong.

Source: the sink score of Gu et al. 2024 (arXiv:2410.10781) at the first ten positions;
what stands at position 0 as in `mechsink.experiments.operators`.
"""

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from mechsink.experiments.formation.moment import Texts, measure_moment
from mechsink.experiments.operators import UNSEEN, measure_run
from mechsink.models.toy import ToyModel
from mechsink.sinks.measure import measure
from mechsink.sinks.scores import SinkScoreMeter
from mechsink.sites import Site
from toy_tasks import (
    BigramBackcopy,
    SourceText,
    ToyTransformer,
    TrainRun,
    evaluate,
    realised_excess,
)
from toy_tasks.operators import Window

N_POSITIONS = 10
"""Positions whose sink scores are kept."""

BY_POSITION = "score_at"
"""Name of those rows: sink score of `position`, mean over prompts."""


N_TEXTS = 512
"""Unseen sequences that a run is measured on."""
N_TOKENS = 64
"""Tokens of a text whose sinks are measured, as in the source."""


def measure_emergence(run: TrainRun) -> pd.DataFrame:
    """Measures of a finished run on unseen sequences.

    Returns:
        layer, head, position, measure, value. On Bigram-Backcopy those of
        `measure_run`, on text those of `measure_moment`; beside them `score_at` with
        its position; in a window, `bos_in_view` and `oldest_in_view`. Losses leave out
        targets that a prefix shows.
    """
    toy = run.model()
    if isinstance(run.task, BigramBackcopy):
        tokens = run.task.sample(N_TEXTS, run.config.n_ctx + 1, UNSEEN)
        first = _after_prefix(measure_run(run), run, tokens)
        inputs, counted = tokens[:, :-1], ~run.task.is_trigger(tokens[:, :-1])
    else:
        assert isinstance(run.task, SourceText)
        n_pos = min(N_TOKENS, run.config.n_ctx)
        inputs = run.task.sample(N_TEXTS, n_pos, UNSEEN, part="held-out")
        counted = torch.ones_like(inputs, dtype=torch.bool)
        first = _of_text(toy, run.task, inputs)
    model = ToyModel(toy, run.task)
    top = first[first["measure"] == "sink_score"].assign(measure="sink_top")
    parts = [first, top, _by_position(model, inputs)]
    operator = run.config.operator(0)
    if operator is not None and isinstance(operator.carrier, Window):
        parts.append(in_view(model, inputs, counted, operator.carrier.window))
    both = pd.concat(parts, ignore_index=True)
    columns = ["layer", "head", "position", "measure", "value"]
    both = both.reindex(columns=columns)
    return both.astype(dict.fromkeys(["layer", "head", "position", "value"], float))


@torch.no_grad()
def _of_text(
    toy: ToyTransformer, task: SourceText, inputs: Int[Tensor, "batch pos"]
) -> pd.DataFrame:
    """Sinks, drains and peaks; the loss is of whole windows of the model's context."""
    table = measure_moment(ToyModel(toy, task), Texts([inputs]))
    start = max(toy.config.prefix - 1, 0)
    tokens = task.sample(N_TEXTS, toy.config.n_ctx + 1, UNSEEN, part="held-out")
    losses = [
        F.cross_entropy(toy(part[:, :-1])[:, start:].mT, part[:, start + 1 :])
        for part in tokens.split(32)
    ]
    loss = torch.stack(losses).mean().item()
    row = pd.DataFrame({"measure": ["loss"], "value": [loss]})
    kept = pd.DataFrame(table[table["measure"] != "loss"])
    return pd.concat([kept, row], ignore_index=True)


def in_view(
    model: ToyModel,
    inputs: Int[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pos"],
    window: int,
) -> pd.DataFrame:
    """Attention to the absolute and to the relative first token, above an even head's.

    Means over the counted queries, layers and heads of weight - 1 / (keys seen):
    `bos_in_view` to position 0, of queries 1 to window - 1, which see it;
    `oldest_in_view` to the oldest key seen, of later queries, NaN if there are none.
    """
    sites = [Site("pattern", layer) for layer in range(model.n_layers)]
    cache = model.run(inputs, read=sites).cache
    pattern = torch.stack([cache[site].mean(1) for site in sites]).mean(0)
    n = inputs.shape[1]
    early = torch.arange(1, min(window, n), device=pattern.device)
    late = torch.arange(min(window, n), n, device=pattern.device)
    counted = counted.to(pattern.device)
    to_first = pattern[:, early, 0] - 1 / (early + 1)
    to_oldest = pattern[:, late, late - window + 1] - 1 / window
    values = {
        "bos_in_view": to_first[counted[:, early]].mean().item(),
        "oldest_in_view": to_oldest[counted[:, late]].mean().item(),
    }
    return pd.DataFrame({"measure": list(values), "value": list(values.values())})


def _by_position(model: ToyModel, inputs: Tensor) -> pd.DataFrame:
    meter = SinkScoreMeter(tuple(range(N_POSITIONS)))
    (scores,) = measure(model, [inputs], [meter], meta={})
    by = ["layer", "head", "position"]
    means = scores.table.groupby(by, as_index=False).agg(value=("score", "mean"))
    return means.assign(measure=BY_POSITION)


def _after_prefix(table: pd.DataFrame, run: TrainRun, tokens: Tensor) -> pd.DataFrame:
    """Losses anew, of the targets that were learnt."""
    if not run.config.prefix:
        return table
    assert isinstance(run.task, BigramBackcopy)
    toy, start = run.model(), run.config.prefix - 1
    values = evaluate(toy, run.task, tokens, start=start)
    mean, error = realised_excess(toy, run.task, tokens, start=start)
    values["beyond_oracle"] = mean / error
    kept = table.loc[~table["measure"].isin(list(values))]
    kept_names = [name for name in values if not name.startswith("first_")]
    new = pd.DataFrame(
        {"measure": kept_names, "value": [values[name] for name in kept_names]}
    )
    return pd.concat([kept, new], ignore_index=True)
