"""Made-up results of the types whose plots no measurement of a test draws."""

from collections.abc import Callable

import numpy as np
import pandas as pd

import mechsink as ms
from mechsink.experiments.study import as_claims
from mechsink.prompt_sets.accuracy import Accuracy
from mechsink.results import Result

META = {"model": "made up", "dtype": "float32", "device": "cpu", "n_prompts": 12}
METRIC = "logit_diff"
N = 12


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (N,))


def by_head(**columns: np.ndarray) -> pd.DataFrame:
    """Four layers of three heads, two prompts."""
    index = pd.MultiIndex.from_product(
        [range(2), range(4), range(3)], names=["batch", "layer", "head"]
    )
    return pd.DataFrame({k: v.ravel() for k, v in columns.items()}, index).reset_index()


def completeness() -> Result:
    full = 3 + draws(1)
    table = pd.DataFrame(
        {"sample": range(N), "removed": range(N), "full": full}
    ).assign(circuit=full + 0.2 * draws(2))
    return ms.Completeness(table, META, table[["sample"]], METRIC, "patch")


def minimality() -> Result:
    effect = np.sort(draws(3))
    table = pd.DataFrame({
        "source": [f"a{i // 4}.h{i % 4}" for i in range(N)], "target": "logits",
        "effect": effect, "low": effect - 0.2, "high": effect + 0.3,
        "largest": 1.2 * effect,
    })  # fmt: skip
    return ms.Minimality(table, META, METRIC, "patch")


def faithfulness() -> Result:
    full = 3 + draws(4)
    table = pd.DataFrame({"prompt": range(N), "full": full, "ablated": 0.3})
    table["circuit"] = 0.8 * full + 0.1 * draws(5)
    return ms.Faithfulness(table, META, 0.8, 0.7, 0.9, 20, 400, METRIC, "patch")


def all_for_one() -> Result:
    right = np.arange(N) % 4 > 0
    table = pd.DataFrame({
        "prompt": range(N), "full_correct": right, "full_logprob": -abs(draws(6)),
        "af1_correct": right & (np.arange(N) % 3 > 0), "af1_logprob": -abs(draws(7)),
    })  # fmt: skip
    return ms.AllForOneResult(table, META, 3, [3, 4])


def zero_tuning() -> Result:
    grid = pd.DataFrame({"gamma": [0.25, 0.5, 1.0, 2.0, 3.0]})
    grid["value"] = [0.2, 0.5, 0.6, 0.9, 0.7]
    table = pd.DataFrame({"layer": [0], "head": [1], "up": [1.0], "down": [-1.0]})
    meta = {**META, "settings": {"metric": METRIC}}
    return ms.ZeroTuningSearch(table.assign(kind="up"), meta, grid, "up", 2.0)


def ablation() -> Result:
    table = pd.DataFrame({"prompt": range(N), "full": 3 + draws(8)})
    table["ablated"] = table["full"] - 1 + 0.3 * draws(9)
    table["change"] = table["ablated"] - table["full"]
    return ms.AblationResult(table, META, ["L1.mlp_out"], METRIC)


def noise_floor() -> Result:
    value = draws(10)
    table = pd.DataFrame({"prompt": range(N), "value": value, "spread": 1e-6})
    return ms.NoiseFloor(
        table.assign(floor=1e-5 * (1 + abs(value))), META, METRIC, 1.2e-7
    )


def accuracy() -> Result:
    table = pd.DataFrame({"pair": range(N), "clean": 2 + draws(11)})
    table["corrupted"] = draws(12) - 2
    table["is_top"] = table["clean"] > 1.5
    return Accuracy(table, META, N, 0.9, 0.6, 1.0, 0.5, 0.3, 0.7, 2.0, -2.0)


def path_result() -> Result:
    table = pd.DataFrame({"prompt": [*range(N)] * 2})
    table["path"] = ["L0H1.z -> L2H0.q"] * N + ["L0H1.z -> logits"] * N
    for seed, kind in enumerate(("total", "direct", "indirect", "pure_indirect")):
        table[kind] = seed - 1 + 0.3 * draws(seed, 2 * N)
    both = [1.0] * N
    return ms.PathResult(table, META, ["L2H0.q"], "denoising", METRIC, both, both)


def query_attention() -> Result:
    share = 1 / (1 + np.exp(draws(13, 2, 4, 3)))
    parts = [
        by_head(sink=share * scale).assign(group=name)
        for name, scale in (("trigger", 0.3), ("other", 1.0))
    ]
    return ms.QueryAttention(pd.concat(parts, ignore_index=True), META)


def span_attention() -> Result:
    mass = 1 / (1 + np.exp(draws(14, 2, 4, 3)))
    return ms.SpanAttention(by_head(mass=mass, centric=mass), META)


def head_divergence() -> Result:
    size = abs(draws(15, 2, 4, 3))
    return ms.HeadDivergence(by_head(divergence=size, norm=size + 1), META, [1, 2])


def by_position(n_layers: int = 4, n_pos: int = 9) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(
        [[0], range(n_layers), range(n_pos)], names=["batch", "layer", "pos"]
    )
    return pd.DataFrame(index=index).reset_index()


def span_sinks() -> Result:
    table = by_position()
    phi = abs(draws(16, len(table))) + 20 * (table["pos"] == 0)
    table = table.assign(phi=phi, is_sink=phi > 7, in_span=table["pos"].between(2, 5))
    return ms.SpanSinks(table, META, [2, 3, 4, 5], 7.0)


def span_tokens() -> Result:
    table = by_position()
    table = pd.DataFrame(table[table["pos"].between(2, 5)])
    for seed, name in enumerate(("gaze", "summary", "local", "spatial")):
        table[name] = abs(draws(seed, len(table)))
    return ms.SpanTokens(table, META, [2, 3, 4, 5])


def operators() -> Result:
    rows = [
        (name, seed, 0, 0, measure, at + 0.02 * seed)
        for name, at in (("softmax", 0.9), ("relu", 0.1))
        for seed in range(3)
        for measure in ("bos_markov_share", "value_ratio")
    ]
    columns = ["setting", "seed", "layer", "head", "measure", "value"]
    table = pd.DataFrame(rows, columns=columns)
    meta = {**META, "presets": {"softmax": {"model": {"n_ctx": 32}}}}
    return ms.OperatorStudy(table, meta, as_claims([]))


MADE: dict[str, Callable[[], Result]] = {
    "Completeness": completeness,
    "Minimality": minimality,
    "Faithfulness": faithfulness,
    "AllForOneResult": all_for_one,
    "ZeroTuningSearch": zero_tuning,
    "AblationResult": ablation,
    "NoiseFloor": noise_floor,
    "Accuracy": accuracy,
    "PathResult": path_result,
    "QueryAttention": query_attention,
    "SpanAttention": span_attention,
    "HeadDivergence": head_divergence,
    "SpanSinks": span_sinks,
    "SpanTokens": span_tokens,
    "OperatorStudy": operators,
}
