"""What the emergence study reads off a finished run: where its sink is, how strong.

Source: the sink score of Gu et al. 2024 (arXiv:2410.10781) at the first ten positions;
what stands at position 0 as in `mechsink.experiments.operators`.
"""

import pandas as pd
import torch

from mechsink.experiments.operators import UNSEEN, measure_run
from mechsink.models.toy import ToyModel
from mechsink.sinks.measure import measure
from mechsink.sinks.scores import SinkScoreMeter
from mechsink.sites import Site
from toy_tasks import BigramBackcopy, TrainRun, evaluate, realised_excess
from toy_tasks.operators import Window

N_POSITIONS = 10
"""Positions whose sink scores are kept."""

BY_POSITION = "score_at"
"""Name of those rows: sink score of `position`, mean over prompts."""


def measure_emergence(run: TrainRun) -> pd.DataFrame:
    """Measures of a finished run on 512 unseen sequences.

    Returns:
        layer, head, position, measure, value. Beside those of `measure_run`:
        `score_at` with its position; in a window, `bos_in_view` and `oldest_in_view`.
        Losses leave out targets that a prefix shows.
    """
    assert isinstance(run.task, BigramBackcopy)
    table = measure_run(run)
    tokens = run.task.sample(512, run.config.n_ctx + 1, UNSEEN)
    model = ToyModel(run.model(), run.task)
    parts = [_after_prefix(table, run, tokens), _by_position(model, tokens[:, :-1])]
    operator = run.config.operator(0)
    if operator is not None and isinstance(operator.carrier, Window):
        parts.append(in_view(model, run.task, tokens[:, :-1], operator.carrier.window))
    both = pd.concat(parts, ignore_index=True)
    columns = ["layer", "head", "position", "measure", "value"]
    both = both.reindex(columns=columns)
    return both.astype(dict.fromkeys(["layer", "head", "position", "value"], float))


def in_view(
    model: ToyModel, task: BigramBackcopy, inputs: torch.Tensor, window: int
) -> pd.DataFrame:
    """Attention to the absolute and to the relative first token, above an even head's.

    Means over non-trigger queries, layers and heads of weight - 1 / (keys seen):
    `bos_in_view` to position 0, of queries 1 to window - 1, which see it;
    `oldest_in_view` to the oldest key seen, of later queries, NaN if there are none.
    """
    sites = [Site("pattern", layer) for layer in range(model.n_layers)]
    cache = model.run(inputs, read=sites).cache
    pattern = torch.stack([cache[site].mean(1) for site in sites]).mean(0)
    other = ~task.is_trigger(inputs)
    n = inputs.shape[1]
    early = torch.arange(1, min(window, n))
    late = torch.arange(min(window, n), n)
    to_first = pattern[:, early, 0] - 1 / (early + 1)
    to_oldest = pattern[:, late, late - window + 1] - 1 / window
    values = {
        "bos_in_view": to_first[other[:, early]].mean().item(),
        "oldest_in_view": to_oldest[other[:, late]].mean().item(),
    }
    return pd.DataFrame({"measure": list(values), "value": list(values.values())})


def _by_position(model: ToyModel, inputs: torch.Tensor) -> pd.DataFrame:
    meter = SinkScoreMeter(tuple(range(N_POSITIONS)))
    (scores,) = measure(model, [inputs], [meter], meta={})
    by = ["layer", "head", "position"]
    means = scores.table.groupby(by, as_index=False).agg(value=("score", "mean"))
    return means.assign(measure=BY_POSITION)


def _after_prefix(
    table: pd.DataFrame, run: TrainRun, tokens: torch.Tensor
) -> pd.DataFrame:
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
