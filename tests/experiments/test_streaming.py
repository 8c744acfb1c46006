"""The streaming study: planted losses, a tiny model by hand, and the embedded one."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.experiments.streaming.experiment import streaming
from mechsink.experiments.streaming.study import (
    ANEW,
    DENSE,
    SINKS,
    WINDOW,
    Streaming,
    claims,
    losses_table,
)
from mechsink.models.cache_policies import HeavyHitters, SinkWindow, Window
from mechsink.models.stream_losses import stream_losses
from tests.models.backends import load

TOKENS = torch.tensor([[i * i * 7 % 79 for i in range(3, 75)]])  # 72 tokens
SMALL = {"n_tokens": 72, "cache": 6, "sinks": 2, "recompute_every": 3, "piece": 5}


@pytest.fixture(scope="module")
def small() -> Streaming:
    more = {"heavy": HeavyHitters(recent=3, heavy=3)}
    return streaming(load("llama"), TOKENS, policies=more, **SMALL, progress=False)


def losses(study: Streaming, policy: str) -> pd.Series:
    rows = study.table[study.table["policy"] == policy]
    return rows.set_index("pos")["nll"]


@pytest.mark.matrix
def test_each_policy_has_the_losses_of_its_own_run(small: Streaming) -> None:
    model = load("llama")
    for name, policy in {
        WINDOW: Window(6),
        SINKS: SinkWindow(2, 4),
        "heavy": HeavyHitters(recent=3, heavy=3),
    }.items():
        alone = [p.losses[0] for p in stream_losses(model, TOKENS[0], [policy])]
        got = losses(small, name)
        assert got.index.tolist() == list(range(1, 72))
        np.testing.assert_allclose(got, torch.cat(alone), rtol=1e-4)


@pytest.mark.matrix
def test_dense_ends_at_the_context_and_is_a_plain_run(small: Streaming) -> None:
    got = losses(small, DENSE)
    assert got.index.tolist() == list(range(1, 65))  # 64 tokens read
    logits = load("llama").run(TOKENS[:, :64]).logits[0]
    want = -logits.log_softmax(-1)[torch.arange(64), TOKENS[0, 1:65]]
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_windows_are_read_anew_every_few_tokens(small: Streaming) -> None:
    got = losses(small, ANEW)
    assert got.index.tolist() == list(range(6, 72, 3))
    logits = load("llama").run(TOKENS[:, 30:36]).logits[0, -1]
    want = -logits.log_softmax(-1)[TOKENS[0, 36]].item()
    assert got[36] == pytest.approx(want, rel=1e-4)


def test_costs_count_every_token_once(small: Streaming) -> None:
    tokens = small.costs.groupby("pass")["tokens"].sum()
    assert tokens.to_dict() == {"stream": 71, "dense": 64}
    assert small.costs["slots"].groupby(small.costs["pass"]).max().to_dict() == {
        "stream": 6,
        "dense": 64,
    }
    assert (small.costs[["seconds", "rss_mb", "cache_mb"]] > 0).all(axis=None)
    assert small.meta["settings"]["policies"]["heavy"].startswith("HeavyHitters")


def test_it_saves_loads_and_draws(small: Streaming, tmp_path: Path) -> None:
    loaded = Streaming.load(small.save(tmp_path / "study"))
    pd.testing.assert_frame_equal(loaded.table, small.table)
    pd.testing.assert_frame_equal(loaded.costs, small.costs)
    figures = loaded.figures()
    assert set(figures) == {"streaming-perplexity", "streaming-costs"}
    axes = figures["streaming-perplexity"].axes[0]
    assert axes.get_yscale() == "log" and "perplexity" in axes.get_ylabel()


# Planted losses: the same text for all, and known differences.


def planted(slope: float = 0.0, n: int = 8000) -> pd.DataFrame:
    pos = np.arange(1, n)
    text = 3 + np.sin(pos / 300) + 0.3 * np.cos(7 * pos)  # with ups and downs
    anew = np.arange(130, n, 16)
    rise = slope * pos / (n - 130)
    return losses_table(
        {
            WINDOW: (pos, text + rise + math.log(2)),
            SINKS: (pos, text + rise),
            DENSE: (pos[:4000], text[:4000] - math.log(1.5)),
            ANEW: (anew, text[anew - 1] - math.log(1.1)),
        }
    )


def costs(growth: float = 0.0, n: int = 8000) -> pd.DataFrame:
    start = np.arange(0, n - 1, 10)
    return pd.DataFrame(
        {
            "pass": "stream",
            "start": start,
            "tokens": 10,
            "seconds": 0.3,
            "cpu_seconds": 0.2 * (1 + growth * start / n),
            "rss_mb": 500.0 + 400 * growth * start / n,
            "slots": np.minimum(start + 10, 128),
            "cache_mb": 3.0,
        }
    )


def study(table: pd.DataFrame) -> Streaming:
    meta = {"settings": {"cache": 128, "policies": {}}}
    rows = claims(table, costs(), 128, long=True)
    return Streaming(table, meta, pd.DataFrame(rows), costs())


def test_planted_ratios_and_drift_are_measured() -> None:
    rows = claims(planted(), costs(), 128, long=True)
    measured = [row["measured"] for row in rows]
    assert measured == pytest.approx([2, 1.1, 1, 0, 1, 0], abs=1e-9)
    assert all(row["holds"] for row in rows)
    assert rows[0]["low"] == pytest.approx(2) and rows[0]["high"] == pytest.approx(2)


def test_planted_drift_and_growth_are_claims_that_fail() -> None:
    rows = claims(planted(slope=0.5), costs(growth=1.0), 128, long=True)
    assert rows[3]["measured"] == pytest.approx(0.5, abs=5e-3)
    assert rows[4]["measured"] == pytest.approx(1.88 / 1.14, abs=0.02)
    assert rows[5]["measured"] == pytest.approx(300, abs=8)
    assert [row["holds"] for row in rows] == [True, False, True, False, False, False]
    assert len(claims(planted(), costs(), 128, long=False)) == 3


def test_perplexities_share_their_tokens() -> None:
    frame = study(planted()).perplexity().set_index("policy")
    ratio = frame.loc[WINDOW] / frame.loc[SINKS]
    assert ratio.tolist() == pytest.approx([2, 2, 2])
    beside = frame["beside dense"]
    assert beside[SINKS] / beside[DENSE] == pytest.approx(1.5)
    beside = frame[f"beside {ANEW}"]
    assert beside[SINKS] / beside[ANEW] == pytest.approx(1.1)
    assert math.isnan(frame.loc[DENSE, "whole text"])
    assert math.isnan(frame.loc[ANEW, "beside dense"])


def test_stretches_of_the_window_read_anew_are_those_of_all_tokens() -> None:
    along = study(planted()).along()
    assert along["from token"].tolist() == list(range(0, 8000, 1000))
    want = along[SINKS] - math.log(1.1)
    np.testing.assert_allclose(along[ANEW], want, rtol=1e-9)
    assert along[DENSE].isna().tolist() == [False] * 4 + [True] * 4


def test_the_figure_has_whole_stretches_alone() -> None:
    ax = study(planted()).plot()
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}
    # 20 stretches of 400 tokens; dense ends with the tenth.
    assert [len(lines[name]) for name in (SINKS, DENSE)] == [20, 20]
    assert np.isnan(lines[DENSE]).tolist() == [False] * 10 + [True] * 10
    np.testing.assert_allclose(lines[WINDOW], 2 * lines[SINKS], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sinks": 6}, "1 <= sinks < cache"),
        ({"recompute_every": 9}, "20 windows or more"),
        ({"n_tokens": 90}, "the text has 72 tokens, n_tokens=90"),
        ({"policies": {"dense": Window(6)}}, "names other than"),
        ({"policies": {"wide": Window(7)}}, "policies of 6 slots"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        streaming(load("llama"), TOKENS, **{**SMALL, **options})
