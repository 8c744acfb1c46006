"""Compiled programs: their twins say what tracr says, and have the program's edges."""

import random

import numpy as np
import pytest
import torch

pytest.importorskip("tracr.compiler", reason="needs tracr-pypi (extra: tracr)")

from tests.toy_tasks.edge_brute_force import auroc, effects, forward, pruned
from tests.toy_tasks.tracr_models import (
    WORDS,
    compiled,
    programs,
    tracr_hist,
    tracr_next,
)

pytestmark = pytest.mark.matrix  # jax compiles for seconds

MEANING = {
    "hist": lambda row: [row[: n + 1].count(w) for n, w in enumerate(row)],
    "reverse": lambda row: [row[0]] * len(row),
}


@pytest.mark.parametrize("name", ["hist", "next", "reverse"])
def test_twin_equals_tracr(name):
    made = compiled(programs()[name])
    draw = random.Random(1)
    rows = [[draw.choice(WORDS) for _ in range(5)] for _ in range(40)]
    tokens = made.encode(rows)
    theirs = made.tracr.forward(made.tracr.params, tokens.numpy())
    with torch.no_grad():
        _, writes = forward(made.toy, made.toy.embed(tokens))
        logits = made.toy(tokens)
    # tracr computes in float32, and its neurons have weights of 100.
    np.testing.assert_allclose(
        sum(writes.values()), theirs.transformer_output.output, rtol=0, atol=1e-4
    )
    # Its own decoded outputs, but where two are equally good ("next" without match).
    top = logits[:, :, : len(made.outputs)].topk(2)
    clear = (top.values[..., 0] - top.values[..., 1] > 0.1)[:, 1:]
    assert clear.double().mean() > 0.3
    said = top.indices[:, 1:, 0]
    decoded = torch.from_numpy(np.array(theirs.unembedded_output))[:, 1:]
    assert torch.equal(said[clear], decoded.long()[clear])
    if name in MEANING:
        assert clear.all()
        words = [[made.outputs[i] for i in row] for row in said.tolist()]
        assert words == [MEANING[name](row) for row in rows]


@pytest.mark.parametrize("build", [tracr_hist, tracr_next])
def test_compiled_edges_are_the_programs(build):
    case = build()
    with torch.no_grad():
        said = case.model(case.clean)[:, -1].argmax(-1)
    assert torch.equal(said, case.answers)
    got = effects(case)
    assert case.edges <= case.all_edges <= set(got)
    assert min(got[e] for e in case.edges) >= case.effect_floor
    assert max(abs(x) for e, x in got.items() if e not in case.edges) < 1e-9
    assert auroc(got, case.edges) == 1

    def drop(full, now):
        return (case.logit_diff(full) - case.logit_diff(now)).mean().abs().item()

    assert pruned(case, 0.05, drop) == case.edges
