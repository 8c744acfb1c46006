"""Options of the public functions: a result, or one error that says what is allowed."""

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

import mechsink as ms
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.prompts import PromptPairs
from mechsink.sites import AXES
from tests.circuits.small import prompt_pairs, toy
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.texts import texts

model = functools.cache(toy)
pairs = functools.cache(lambda: prompt_pairs(2, 4))
N = 4  # heads; tokens in a prompt too


@functools.cache
def scores() -> EdgeScores:
    return ms.eap(model(), pairs(), ms.logit_diff)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.just(-(10**30)),  # as large a number of steps would only take for ever
    st.floats(),
    st.floats(-1, 2),
    st.complex_numbers(),
    texts,
    st.binary(max_size=3),
    st.lists(st.integers(-3, 9) | st.none() | texts | st.floats(), max_size=3),
    st.dictionaries(st.integers(0, 3), st.integers(0, 3), max_size=2),
    st.sampled_from([np.int64(1), np.float32(0.5), np.array([0, 1]), np.array(1)]),
    st.sampled_from([range(2), object, len]),
)
"""Values of every type, in range and out of it."""
small = st.integers(-2, 9) | st.just(10**30)


def some(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what an option is for."""
    return st.one_of(good, good, good, odd)


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


sweeps = {
    "site": some(st.sampled_from([*AXES])),
    "direction": some(st.sampled_from(["denoising", "noising"])),
    "layers": some(st.none() | st.lists(small, max_size=3)),
    "positions": some(st.none() | st.just("all") | st.lists(small, max_size=3)),
    "neurons": some(st.none() | st.lists(st.integers(-2, 30), max_size=2)),
    "engine": some(st.sampled_from(["auto", "wave", "cells"])),
}


@hostile(12, 700, **sweeps)
def test_any_options_of_a_sweep(**options):
    found = tried(ms.patch_sweep, model(), pairs(), ms.logit_diff, **options)
    if is_refused(found):
        return
    chosen = options["layers"]
    layers = range(2) if chosen is None else {int(layer) for layer in chosen}
    assert {*found.table["layer"]} == {*layers} <= {0, 1}
    assert {*found.table["pos"]} <= {-1, *range(N)}
    assert found.table["value"].notna().all()


@hostile(8, 300, positions=some(small | st.lists(small, max_size=3)))
def test_any_positions_of_sink_scores(positions):
    tokens = pairs().clean
    found = tried(ms.sink_scores, model(), tokens, positions)
    if not is_refused(found):
        assert {*found.table["position"]} <= {*range(N)}
        assert found.table["score"].between(0, 1).all()


@functools.cache
def sinks() -> Any:
    return ms.sink_scores(model(), pairs().clean, [0, 1])


@hostile(8, 300, eps=some(st.floats(0, 1)), position=some(st.sampled_from([0, 1])))
def test_any_threshold_of_a_sink_rate(eps, position):
    found = tried(sinks().rate, eps, position)
    if not is_refused(found):
        assert 0 <= found <= 1 and 0 <= eps <= 1


@hostile(
    3, 150, eps=some(st.floats(0, 1)), position=some(small), length=some(small),
    n_texts=some(small),
)  # fmt: skip
def test_any_options_of_a_sink_report(eps, position, length, n_texts):
    options = {"eps": eps, "position": position, "length": length, "n_texts": n_texts}
    found = tried(ms.sink_report, model(), pairs().clean, **options)
    if not is_refused(found):
        assert 0 <= found.rate <= 1 and found.eps == eps


@hostile(
    6,
    200,
    steps=some(st.integers(-2, 4)),
    method=st.sampled_from(
        [
            ms.eap_ig,
            ms.eap_ig_activations,
            functools.partial(ms.attribution_patching, site="z"),
        ]
    ),
)
def test_any_steps_of_integrated_gradients(steps, method):
    found = tried(method, model(), pairs(), ms.logit_diff, steps=steps)
    if not is_refused(found):
        assert np.isfinite(found.table["score"]).all()
        assert steps is None or (is_whole(steps) and steps >= 0)


@hostile(8, 400, n=some(st.integers(-1, 60)), signed=some(st.booleans()))
def test_any_number_of_top_edges(n, signed):
    for choose in (ms.top_edges, ms.greedy_edges):
        found = tried(choose, scores(), n, signed=signed)
        if not is_refused(found):
            assert is_whole(n) and found.n_edges <= n


@hostile(
    4,
    200,
    fractions=some(
        st.lists(st.floats(0, 1), min_size=2, max_size=3, unique=True).map(sorted)
    ),
    selection=some(st.sampled_from(["top", "greedy"])),
    ablation=some(st.sampled_from(["patch", "zero", "mean"])),
    resamples=some(st.integers(-1, 20)),
    seed=some(st.integers(-1, 10)),
    log=some(st.booleans()),
)
def test_any_options_of_a_faithfulness_curve(**options):
    found = tried(
        ms.faithfulness_curve, model(), scores(), pairs(), ms.logit_diff, **options
    )
    if not is_refused(found):
        assert (found.table["fraction"].between(0, 1)).all()
        assert found.table["fraction"].is_monotonic_increasing
        assert options["resamples"] >= 1


@hostile(
    6,
    300,
    layer=some(small),
    head=some(small),
    position=some(small),
)
def test_any_head_of_a_sink_metric(layer, head, position):
    def measured() -> Any:
        metric = ms.sink_attention(layer=layer, head=head, position=position)
        return ms.patch_sweep(model(), pairs(), metric, "resid_pre")

    found = tried(measured)
    if not is_refused(found):
        assert 0 <= layer < 2 and 0 <= head < N and 0 <= position < N
        assert all(0 <= value <= 1 for value in found.clean)


@hostile(
    6,
    300,
    path=some(st.sampled_from([*AXES])),
    layer=some(small),
    head=some(st.none() | small),
    replacement=st.sampled_from(["zero", "mean", "resample", "other"]),
)
def test_any_ablation(path, layer, head, replacement):
    def measured() -> Any:
        site = ms.Site(path, layer, head=head)
        values: Any = {
            "zero": ms.zero,
            "mean": lambda: ms.mean(pairs().clean),
            "resample": lambda: ms.resample(pairs().corrupted),
            "other": lambda: 0.0,
        }[replacement]()
        return ms.ablate(model(), pairs(), [site], values, ms.logit_diff)

    found = tried(measured)
    assert is_refused(found) or len(found.table) >= len(pairs())


@hostile(
    6,
    300,
    clean=st.lists(st.lists(st.integers(-2, 90), max_size=4), max_size=3),
    answers=st.lists(st.integers(-2, 90), min_size=1, max_size=3),
)
def test_any_tokens_in_a_sweep(clean, answers):
    import torch

    def measured() -> Any:
        rows = [torch.tensor(row, dtype=torch.long) for row in clean]
        right = torch.tensor(answers)
        given = PromptPairs(rows, [row + 1 for row in rows], right, right + 1)
        return ms.patch_sweep(model(), given, ms.logit_diff)

    found = tried(measured)
    if not is_refused(found):
        assert np.isfinite(found.table["value"]).all()
