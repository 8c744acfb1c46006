"""Where the knobs are turned: Bigram-Backcopy, and a small language model.

A bed is a base recipe and the values that each knob takes on it. Both beds have the
same knobs, so that one table of trends serves them.

Source: the ablations of Gu et al. 2024 (arXiv:2410.10781), their values scaled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from toy_tasks import PRESETS, BigramBackcopy, Preset, SourceText
from toy_tasks.task import Task


@dataclass(frozen=True)
class Bed:
    """A base recipe, and what its knobs can be set to.

    Values are strings as they stand in the names of settings: "lr 2e-4". The base's
    own value of each is no part of them.
    """

    name: str
    text: str  # what is learnt, for "On ..."
    base: Preset
    quick: Preset  # the base's small form
    task: Callable[..., Task]  # of n_bos, bos_at, random_at; these are drawn from it
    lr: tuple[str, ...]
    steps: tuple[str, ...]
    data: tuple[str, ...]  # sequences there are; the base has fresh ones
    decay: tuple[str, ...]
    window: tuple[str, ...]
    prefix: int
    seeds: int  # how many, unless told
    quick_settings: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Trend to what to keep in mind of it here."""


@cache
def _letters() -> BigramBackcopy:
    return BigramBackcopy.from_text()  # counting takes a tenth of a second


def _bigrams(**options: Any) -> BigramBackcopy:
    return replace(_letters(), **options)


def _smaller(preset: Preset, steps: int, batch: int, **model: Any) -> Preset:
    return replace(
        preset, steps=steps, batch=batch, model=replace(preset.model, **model)
    )


_BOS = "<s>, known by its content, stands first: the sink stays there"
_BARE = "one layer sees no first token without <s>: nothing but its position tells it"
_RIVAL = "<s> stays and serves as well as the bias, so either may take the sink"
_ONE = "one layer finds the token before by position alone"
_CONSTRUCTED = "partly by construction: fewer queries see position 0"
_PROXY = "score of |A| / sum |A|, as in the source"
_UNNORMALISED = {
    f"{name}: no sink": _PROXY
    for name in ("sigmoid", "elu", "linear", "mlp-clamped", "relu")
}
_RIVALS = {f"{name}: no more on the first": _RIVAL for name in
           ("key-bias", "kv-bias", "sink-token")}  # fmt: skip

_BIGRAM = _smaller(PRESETS["bb-cpu"], 1000, 32, d_mlp=128)

BIGRAM = Bed(
    "bigram",
    "Bigram-Backcopy",
    # One layer, one head, 64 tokens, AdamW, 32,000 sequences: smaller than bb-cpu, so
    # that all settings and three seeds take some half an hour of one core.
    base=_BIGRAM,
    quick=_smaller(_BIGRAM, 400, 48, n_ctx=32),
    task=_bigrams,
    lr=("2e-4", "6e-4", "2e-3"),
    steps=("125", "250", "500"),
    data=("32", "256", "2048"),
    decay=("0", "0.1", "0.5", "2", "5"),  # lr x decay x steps is near the published
    window=("4", "16", "32"),
    prefix=5,
    seeds=3,
    quick_settings=("base", "steps 125", "bos at 2", "linear"),
    notes={
        "Weight decay of .5 against 0: a stronger sink":
            "little room: queries on triggers, a third, never rest",
        "No <s>: the sink is on the first token": _BARE,
        "Random token at 0: the sink moves to 1": _BARE,
        "Random tokens at 0 and 1: it moves to 2": _BARE,
        "Prefix of 5: a sink among its tokens but the first": _BOS,
        "Prefix of 5 without <s>: a sink among its tokens": _BARE,
        "A smaller window: a weaker sink": _CONSTRUCTED,
        "none positions: a sink": _ONE + ", and NoPE gives none",
        "alibi positions: a sink":
            _ONE + ", and one head's ALiBi takes off .004 a token",
        "elu-features-sum: a sink":
            "positive features of low rank; the task needs sharp attention",
        **_RIVALS,
        **_UNNORMALISED,
    },
)  # fmt: skip


def _source(**options: Any) -> SourceText:
    return SourceText.from_library(400, **options)


def _large_source(**options: Any) -> SourceText:
    return SourceText.from_library(4000, with_tests=True, **options)


# Figures stand in a note by name: trends.py fills in those of the run at hand.
_FEW = "{tokens} tokens read; the source: 5 billion"
_BASE = "the base itself: {base}"
_SEEDS = "the seeds: {seeds}"
_TEXT_NOTES = {
    "A larger learning rate: a stronger sink": _SEEDS,
    "More steps: a stronger sink": _SEEDS,
    "More data: a stronger sink": "few windows are learnt by heart: see the loss",
    "Weight decay of .5 against 0: a stronger sink":
        "lr x decay x steps is three times the published",
    "No <s>: the sink is on the first token": _FEW,
    "<s> at 5: the sink is there, not at 0": _SEEDS,
    "Prefix of 5: a sink among its tokens but the first":
        "<s>, known by its content, stays first; " + _BASE,
    "Prefix of 5 without <s>: a sink among its tokens": _FEW,
    "A smaller window: a weaker sink": _CONSTRUCTED,
    **{f"{name} positions: a sink": _BASE
       for name in ("none", "learned", "sinusoidal", "alibi", "relative")},
    "v-bias: still on the first token": _BASE,
    "sigmoid-sum: a sink": _SEEDS,
    "elu-features-sum: a sink": _SEEDS,
    **dict.fromkeys(_RIVALS, _BASE),
    **_UNNORMALISED,
}  # fmt: skip

TEXT = Bed(
    "text",
    "the standard library's source",
    base=PRESETS["text-cpu"],
    quick=_smaller(PRESETS["text-cpu"], 600, 8),
    task=_source,
    lr=("1e-3", "3e-3"),
    steps=("625", "1250", "2500"),
    data=("512", "4096"),
    decay=("0", "0.5", "2", "5"),
    window=("4", "16", "32"),
    prefix=5,
    seeds=3,
    quick_settings=("base", "no bos"),
    notes=_TEXT_NOTES,
)
TEXT_GPU = replace(
    TEXT,
    name="text-gpu",
    base=PRESETS["text-gpu"],
    quick=_smaller(PRESETS["text-gpu"], 200, 16),
    task=_large_source,
    lr=("1e-5", "1e-4", "1e-3"),
    steps=("2500", "5000", "10000"),
    data=("1000", "10000", "100000"),
    window=("16", "64", "128"),
    seeds=1,
    notes={"A smaller window: a weaker sink": _CONSTRUCTED, **_UNNORMALISED},
)

BEDS = {bed.name: bed for bed in (BIGRAM, TEXT, TEXT_GPU)}
"""By name."""
