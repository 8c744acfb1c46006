"""Knobs and trends of the emergence study on planted numbers and toys."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from mechsink.experiments.emergence import study
from mechsink.experiments.emergence.beds import BEDS, BIGRAM, TEXT
from mechsink.experiments.emergence.measures import in_view, measure_emergence
from mechsink.experiments.emergence.scores import Scores, gap, moved, slope, strongest
from mechsink.experiments.emergence.settings import knobs, setting
from mechsink.experiments.emergence.study import EmergenceStudy, emergence
from mechsink.experiments.emergence.trends import trend_table, trends, verdict
from mechsink.experiments.grids import jobs
from mechsink.experiments.grids.jobs import Setting
from mechsink.models.toy import ToyModel
from mechsink.run import Run
from mechsink.sites import Site
from toy_tasks import (
    BigramBackcopy,
    Preset,
    SourceText,
    ToyConfig,
    ToyTransformer,
    TrainRun,
    train,
)
from toy_tasks.operators import Operator, Window

SEEDS = (0, 1, 2)


def planted(by_setting: dict[str, float], at: dict[str, dict[int, float]]) -> Scores:
    """Three seeds, .01 apart, around these scores; by position two heads, .1 apart."""
    runs = [
        {"setting": name, "seed": seed, "sink_score": score + 0.01 * (seed - 1)}
        for name, score in by_setting.items()
        for seed in SEEDS
    ]
    positions = [
        {"setting": name, "seed": seed, "layer": 0, "head": head, "position": pos,
         "score": score + 0.01 * (seed - 1) + 0.1 * (head - 0.5)}
        for name, places in at.items() for pos, score in places.items()
        for seed in SEEDS for head in (0, 1)
    ]  # fmt: skip
    return Scores(pd.DataFrame(runs), pd.DataFrame(positions))


def test_slopes_gaps_and_positions_by_hand():
    scores = planted(
        {"base": 0.6, "a": 0.1, "b": 0.2, "c": 0.3},
        {"p": {0: 0.2, 1: 0.5, 2: 0.4}},
    )
    line = slope({"a": 50, "b": 100, "c": 200}, 2)(scores)
    assert line.tolist() == pytest.approx([0.1] * 3)
    assert slope({"a": 50, "absent": 3}, 2)(scores).empty
    assert gap("a")(scores).tolist() == pytest.approx([-0.5] * 3)
    assert gap("absent")(scores).empty
    assert strongest("p", 0, 2)(scores).tolist() == pytest.approx([0.44, 0.45, 0.46])
    assert moved("p", 1)(scores).tolist() == pytest.approx([0.3] * 3)


def test_verdict_is_that_of_the_interval():
    """Mean .55, deviation .05, three seeds: .55 -+ 4.303 * .05 / sqrt(3) = .124."""
    values = [0.5, 0.55, 0.6]
    assert verdict(values, "above", 0.42) == "agree"
    assert verdict(values, "above", 0.43) == "unresolved"
    assert verdict(values, "above", 0.68) == "disagree"
    assert verdict(values, "below", 0.68) == "agree"
    assert verdict(values, "below", 0.67) == "unresolved"
    assert verdict(values, "below", 0.42) == "disagree"
    assert verdict([0.9], "above", 0.3) == "unresolved"


def test_trend_table_of_planted_runs():
    """A head .05 above the mean is the strongest."""
    names = {"linear": 0.1, "sigmoid-sum": 0.1, "elu": 0.245, "decay 5": 0.0}
    at = {name: {0: score} for name, score in names.items()}
    scores = planted({}, {**at, "no bos": {0: 0.05}, "bos at 2": {0: 0.02, 2: 0.6}})
    scores = Scores(pd.DataFrame(columns=["setting", "seed"]), scores.positions)
    table = trend_table(scores, BIGRAM, BIGRAM.base).set_index("trend")
    assert table["verdict"].to_dict() == {
        "Weight decay of 5: no sink": "unconfirmed",
        "No <s>: the sink is on the first token": "disagree",
        "<s> at 2: the sink is there, not at 0": "agree",
        "sigmoid-sum: a sink": "disagree",
        "elu: no sink": "unresolved",
        "linear: no sink": "agree",
    }
    row = table.loc["<s> at 2: the sink is there, not at 0"]
    assert row["measured"] == pytest.approx(0.58) and row["wanted"] == "> 0"
    assert table.loc["elu: no sink", "measured"] == pytest.approx(0.295)


def test_figures_in_notes_are_those_of_the_run():
    """Seeds differ by .01; the strongest head is .05 above the mean."""
    levels = {"base": {0: 0.25}, "v-bias": {0: 0.1}, "sigmoid-sum": {0: 0.4}}
    scores = planted({}, {**levels, "no bos": {0: 0.05}})
    scores = Scores(pd.DataFrame(columns=["setting", "seed"]), scores.positions)
    quick = trend_table(scores, BEDS["text"], BEDS["text"].quick)
    notes = quick.set_index("trend")["note"]
    assert notes["v-bias: still on the first token"] == (
        "the base itself: 0.3 [0.275, 0.325]"
    )
    assert notes["sigmoid-sum: a sink"] == "the seeds: 0.44, 0.45, 0.46"
    read = 600 * 8 * 64 / 1e6
    assert notes["No <s>: the sink is on the first token"].startswith(f"{read:.1f} mil")
    assert not quick["note"].str.contains("{", regex=False).any()


@pytest.mark.parametrize("bed", BEDS.values(), ids=list(BEDS))
def test_every_trend_reads_settings_that_are_there(bed):
    names = {name for settings in knobs(bed).values() for name in settings}
    positions = {name: dict.fromkeys(range(10), 0.1) for name in names}
    scores = planted(dict.fromkeys(names, 0.2), positions)
    runs = scores.runs.assign(bos_in_view=0.3, oldest_in_view=0.1)
    table = trend_table(Scores(runs, scores.positions), bed, bed.base)
    assert len(table) == len(trends(bed))
    assert set(table["knob"]) == set(knobs(bed))
    window = table[table["trend"].str.startswith("Window of 16")].iloc[0]
    assert window["measured"] == pytest.approx(0.2)
    assert set(bed.notes) <= set(table["trend"])


def flat(data: dict, prefix: str = "") -> dict:
    parts = {}
    for key, value in data.items():
        whole = f"{prefix}.{key}" if prefix else key
        parts |= flat(value, whole) if isinstance(value, dict) else {whole: value}
    return parts


@pytest.mark.first_case
@pytest.mark.parametrize("bed", BEDS.values(), ids=list(BEDS))
def test_each_setting_turns_one_knob(bed):
    def facts(name):
        one = setting(bed, name)
        task = one.task.to_json()
        task = {k: v for k, v in task.items() if k not in ("table", "words")}
        preset = {**one.preset.to_json(), "checkpoints": None}  # always the last step
        return flat({"task": task, "preset": preset})

    base = facts("base")
    for name in dict.fromkeys(name for names in knobs(bed).values() for name in names):
        other = facts(name)
        keys = [k for k in {*base, *other} if base.get(k) != other.get(k)]
        turned = {".".join(k.split(".")[:3]) for k in keys}
        n = {"base": 0, "no bos": 1, "2 bos": 1, "prefix 5, no bos": 2}.get(name)
        if n is None:
            n = 2 if name.startswith(("bos at", "random")) else 1
        assert len(turned) == n, (name, turned)


def test_quick_keeps_the_knob():
    small = setting(BIGRAM, "steps 125", quick=True).preset
    assert small.steps == 50 and small.model.n_ctx == 32
    with pytest.raises(KeyError):
        setting(BIGRAM, "steps 7")


def test_an_even_head_in_a_window_has_no_excess():
    task = BigramBackcopy.from_text()
    operator = Operator(carrier=Window(4))
    config = ToyConfig(d_vocab=66, d_model=16, d_head=8, n_ctx=12, operators=operator)
    toy = ToyTransformer(config).eval()
    torch.nn.init.zeros_(toy.blocks[0].attn.W_Q)
    tokens = task.sample(4, 12, seed=0)
    table = in_view(ToyModel(toy, task), tokens, ~task.is_trigger(tokens), 4)
    assert table["value"].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_view_by_hand():
    """Window of 2 over 4 tokens: queries 1; 2 and 3."""

    class Fixed(ToyModel):
        def run(self, tokens, **_):
            pattern = torch.tensor(
                [[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0.3, 0.7, 0], [0, 0, 0.8, 0.2]]
            )
            cache = {Site("pattern", 0): pattern.expand(1, 1, 4, 4)}
            return Run(tokens, torch.zeros(1, 4, 66), cache)

    task = BigramBackcopy.from_text()
    toy = ToyTransformer(ToyConfig(d_vocab=66)).eval()
    every = torch.ones(1, 4, dtype=torch.bool)
    table = in_view(Fixed(toy, task), task.sample(1, 4, seed=0), every, 2)
    assert table.set_index("measure")["value"].to_dict() == pytest.approx(
        {"bos_in_view": 0.9 - 0.5, "oldest_in_view": (0.3 + 0.8) / 2 - 0.5}
    )


@pytest.mark.matrix
def test_text_is_measured_on_what_was_held_out(tmp_path, monkeypatch):
    """Even logits lose log V; an even head's sink score is H(T) / T."""
    task = SourceText.from_library(50)
    model = ToyConfig(
        n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, n_ctx=16, norm="none"
    )
    preset = Preset("tiny", model, steps=1, batch=1, lr=1e-9, checkpoints=(1,))
    run = train(task, preset, tmp_path, progress=False)
    toy = run.model()
    for name, weight in toy.named_parameters():
        if name.endswith("W_Q") or name == "W_unembed":
            torch.nn.init.zeros_(weight)
    monkeypatch.setattr(TrainRun, "model", lambda run: toy)
    found = measure_emergence(run)
    found = found[found["measure"] != "score_at"].groupby("measure")["value"].mean()
    assert found["loss"] == pytest.approx(math.log(task.d_vocab), rel=1e-5)
    even = sum(1 / n for n in range(1, 17)) / 16
    assert found["sink_score"] == pytest.approx(even, rel=1e-5)
    assert found["sink_top"] == pytest.approx(even, rel=1e-5)
    assert found["sink_rate"] == 0


@pytest.mark.matrix
@pytest.mark.parametrize(
    "bed",
    [
        pytest.param(BIGRAM, id="bigram"),
        pytest.param(TEXT, id="text", marks=pytest.mark.slow),
    ],
)
def test_the_study_is_resumed_saved_and_drawn(bed, tmp_path, monkeypatch):
    def tiny(bed, name, quick=False):
        found = setting(bed, name)
        model = replace(found.preset.model, d_model=16, d_head=8, d_mlp=16, n_ctx=12)
        preset = replace(
            found.preset, steps=4, batch=4, model=model, checkpoints=(4,), warmup=0
        )
        return Setting(found.task, preset)

    every = knobs(bed)
    few = {"window": ("base", "window 16"), "prefix": ("base", "prefix 5")}
    turns = {knob: {name: every[knob][name] for name in few[knob]} for knob in few}
    monkeypatch.setattr(study, "knobs_of", lambda bed: {**every, **turns})
    monkeypatch.setattr(study, "setting", tiny)
    asked = {"bed": bed.name, "knobs": list(few), "seeds": [0], "workers": 1}
    found = emergence(tmp_path / "runs", **asked)
    assert set(found.table["setting"]) == {"base", "window 16", "prefix 5"}
    assert "score_at" not in set(found.table["measure"])
    one = ["setting", "seed", "layer", "head"]
    assert found.positions.groupby(one).size().eq(10).all()
    both = found.positions[found.positions["position"] == 0]["score"].to_numpy()
    at_0 = found.table[found.table["measure"] == "sink_score"]["value"].to_numpy()
    assert both == pytest.approx(at_0)
    assert set(found.trends["knob"]) == {"prefix"}  # a slope takes all four windows
    assert set(found.figures()) == {"knobs", "positions"}
    assert bed.text in found.about() and "12 tokens, 4 steps" in found.about()
    assert found.meta["n_resumed"] == 0
    assert len(found.tables()["Measured beside published"]) == len(found.trends)
    monkeypatch.setattr(jobs, "train", None)  # calling it would fail
    again = emergence(tmp_path / "runs", **asked)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.meta["n_resumed"] == again.meta["n_runs"] == 3
    back = EmergenceStudy.load(found.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(back.trends, found.trends)


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"no bed 'toy'.*'bigram', 'text'"):
        emergence(tmp_path, bed="toy")
    with pytest.raises(ValueError, match=r"no knob 'lr'.*'learning rate'"):
        emergence(tmp_path, knobs=["lr"])
