"""Direct, total and attributed effects of nodes, side by side."""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.attribution.node_effects import NodeEffects, node_effects
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.sites import Site
from tests.models.backends import load
from toy_tasks import ToyConfig, ToyTransformer
from toy_tasks.planted import correct_letter

DRAWN = torch.Generator().manual_seed(0)
CLEAN = torch.randint(3, 80, (5, 7), generator=DRAWN)
CORRUPTED = CLEAN.clone()
CORRUPTED[:, 3] = (CLEAN[:, 3] + 11) % 80
ANSWERS = torch.randint(0, 40, (5,), generator=DRAWN)
PAIRS = PromptPairs(CLEAN, CORRUPTED, ANSWERS, ANSWERS + 40)


def no_norm() -> ToyModel:
    config = ToyConfig(
        d_vocab=80, n_layers=2, d_model=16, d_head=4, n_heads=4, d_mlp=24, norm="none"
    )
    return ToyModel(ToyTransformer(config).double())


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_without_a_norm_the_attributed_change_is_the_direct_effect(
    direction: Any,
) -> None:
    found = node_effects(no_norm(), PAIRS, direction=direction)
    rows = found.by_prompt
    np.testing.assert_allclose(rows["attribution_change"], rows["direct"], atol=1e-11)
    assert (rows["direct"] - rows["total"]).abs().max() > 1e-3  # not all is direct
    np.testing.assert_allclose(rows["total"], rows["direct"] + rows["indirect"])
    last = rows[(rows["layer"] == 1) & (rows["component"] == "mlp")]
    np.testing.assert_allclose(last["total"], last["direct"], atol=1e-11)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.matrix
def test_total_is_a_plain_patch_and_positive_where_clean_helps(direction: Any) -> None:
    """By hand: the clean value in the corrupted run, or the reverse with its sign."""
    model = load("gpt2")
    (group,) = PAIRS.tokens(model)
    found = node_effects(model, PAIRS, direction=direction).by_prompt
    runs = {"clean": CLEAN, "corrupted": CORRUPTED}
    into, source = runs if direction == "noising" else tuple(runs)[::-1]
    for site, name in ((Site("z", 1, head=2), "h2"), (Site("mlp_out", 0), "mlp")):
        value = model.run(runs[source], read=[site]).cache[site]
        base = logit_diff(model.run(runs[into]), group)
        run = model.run(runs[into], edit={site: lambda x, value=value: value})
        change = logit_diff(run, group) - base
        want = change if direction == "denoising" else -change
        rows = found[(found["layer"] == site.layer) & (found["component"] == name)]
        np.testing.assert_allclose(rows["total"], want, atol=1e-5)


def test_a_planted_head_does_all_directly_and_its_helper_nothing() -> None:
    """a0.h0 works only through a1.h0, which alone writes to the logits."""
    case = correct_letter(n_prompts=30).double()
    pairs = PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
    found = node_effects(ToyModel(case.model), pairs)
    table = found.table.set_index(["layer", "component"])
    swing = np.subtract(found.clean, found.corrupted).mean()
    assert table.loc[(1, "h0"), "direct"] == pytest.approx(swing)
    assert table.loc[(1, "h0"), "total"] == pytest.approx(swing)
    assert abs(table.loc[(0, "h0"), "direct"]) < 1e-9
    assert table.loc[(0, "h0"), "indirect"] > 1
    rest = table.drop([(1, "h0"), (0, "h0")])
    assert rest[["direct", "total", "attribution_change"]].abs().to_numpy().max() < 1e-6
    assert (table["total_low"] <= table["total"]).all()
    assert (table["total"] <= table["total_high"]).all()


def test_a_metric_without_answers_has_no_attribution() -> None:
    pairs = replace(PAIRS, answers=None, wrong=None)
    metric = sink_attention(layer=2, head=1)
    table = node_effects(load("gpt2"), pairs, metric).table
    assert table["attribution"].isna().all()
    assert table["total"].abs().max() > 0


def test_saves_and_plots(tmp_path: Any) -> None:
    found = node_effects(load("gpt2"), PAIRS)
    again = NodeEffects.load(found.save(tmp_path / "nodes"))
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.by_prompt, found.by_prompt)
    ax = found.plot(labels=2)
    largest = found.table[["direct", "total"]].abs().max(axis=1).nlargest(2).index
    want = [
        f"m{row.layer}" if row.component == "mlp" else f"a{row.layer}.{row.component}"
        for row in found.table.loc[largest].itertuples()
    ]
    assert [text.get_text() for text in ax.texts] == want
    plt.close("all")
