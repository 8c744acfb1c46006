"""Sweeps on the wave engine against one forward pass per place."""

import pytest
import torch

from mechsink.interventions.patching import patch_sweep
from mechsink.metrics import answer_logprob, logit_diff, sink_attention
from mechsink.prompts import PromptPairs
from tests.models.backends import load

QUICK = ["llama", "gpt_neox", "toy_gqa_relu"]
MATRIX = ["gpt2", "qwen3", "gemma2", "mistral", "olmo2", "bloom", "toy"]
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.matrix) for name in MATRIX)]
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k",
         "v", "pattern"]  # fmt: skip


def pairs(n: int = 2, n_pos: int = 7) -> PromptPairs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 80, (2, n, n_pos), generator=generator)
    return PromptPairs(
        tokens[0], tokens[1], torch.tensor([5, 6])[:n], torch.tensor([9, 7])[:n]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_the_wave_equals_one_pass_per_place(family: str, site: str) -> None:
    model = load(family)
    if site not in model.shape.sites:
        pytest.skip(f"{family} has no {site}")
    for direction in ("denoising", "noising"):
        for positions in (None, "all"):
            got, want = (
                patch_sweep(
                    model, pairs(), logit_diff, site, direction,
                    positions=positions, engine=engine,
                )
                for engine in ("wave", "cells")
            )  # fmt: skip
            assert got.meta["settings"]["engine"] == "wave"
            assert list(got.table.columns) == list(want.table.columns)
            key = [c for c in got.table.columns if c not in ("value", "effect")]
            assert got.table[key].equals(want.table[key])
            scale = want.table["value"].abs().max()
            off = (got.table["value"] - want.table["value"]).abs().max()
            assert off <= 1e-4 * scale, (direction, positions)


@pytest.mark.parametrize("family", ["llama", "toy"])
def test_patching_everything_in_one_layer_gives_the_source_run(family: str) -> None:
    result = patch_sweep(
        load(family), pairs(), logit_diff, "resid_pre", positions="all"
    )
    assert result.table["effect"].to_numpy() == pytest.approx(1.0, abs=1e-4)


def test_patching_a_run_into_itself_changes_nothing() -> None:
    own = pairs()
    same = PromptPairs(own.clean, own.clean, own.answers, own.wrong)
    result = patch_sweep(load("llama"), same, logit_diff, "z")
    assert result.table["effect"].isna().all()  # clean and corrupted agree
    clean = result.table["prompt"].map(lambda i: result.clean[i])
    assert (result.table["value"] - clean).abs().max() < 1e-5


def test_neurons_and_chosen_layers_and_positions() -> None:
    model = load("llama")
    options = {"layers": [2, 1], "positions": [3, 6], "neurons": [0, 47]}
    got, want = (
        patch_sweep(model, pairs(), logit_diff, "mlp_post", engine=e, **options)
        for e in ("wave", "cells")
    )
    assert len(got.table) == 2 * 2 * 2 * 2
    assert got.table["value"].to_numpy() == pytest.approx(
        want.table["value"].to_numpy(), abs=1e-4
    )


def test_other_metrics_take_the_path_that_serves_them() -> None:
    model = load("llama")
    sink = patch_sweep(model, pairs(), sink_attention(layer=1, head=2), "mlp_out")
    assert sink.meta["settings"]["engine"] == "cells"
    # Nothing after layer 1's scores can change them.
    late = sink.table[sink.table["layer"] >= 1]
    assert late["effect"].abs().max() < 1e-4
    assert sink.table["effect"].abs().max() > 1e-3
    wave = patch_sweep(model, pairs(), answer_logprob, "attn_out")
    cell = patch_sweep(model, pairs(), answer_logprob, "attn_out", engine="cells")
    assert wave.table["value"].to_numpy() == pytest.approx(
        cell.table["value"].to_numpy(), abs=1e-4
    )


def test_results_do_not_depend_on_the_batch(monkeypatch) -> None:
    from mechsink.interventions import patching

    model = load("llama")
    whole = patch_sweep(model, pairs(), logit_diff, "z").table
    for rows in (1, 3, 7):
        monkeypatch.setattr(patching, "rows_that_fit", lambda *a, rows=rows, **k: rows)
        small = patch_sweep(model, pairs(), logit_diff, "z").table
        assert small["value"].to_numpy() == pytest.approx(
            whole["value"].to_numpy(), abs=1e-4
        )


def test_pairs_of_different_lengths_share_a_table() -> None:
    rows = [torch.arange(5), torch.arange(10, 17)]
    other = [row + 30 for row in rows]
    mixed = PromptPairs(rows, other, torch.tensor([5]), torch.tensor([9]))
    table = patch_sweep(load("toy"), mixed, logit_diff).table
    assert table.groupby("prompt")["pos"].max().tolist() == [4, 6]


def test_bad_input_says_what_is_allowed() -> None:
    model = load("gptj")
    with pytest.raises(ValueError, match="has no resid_mid"):
        patch_sweep(model, pairs(), logit_diff, "resid_mid")
    with pytest.raises(ValueError, match="discards edits of pattern"):
        patch_sweep(model, pairs(), logit_diff, "pattern")
    with pytest.raises(ValueError, match="Allowed: some of 0 to 2"):
        patch_sweep(model, pairs(), logit_diff, layers=[3])
    with pytest.raises(ValueError, match='0 to 6, or "all"'):
        patch_sweep(model, pairs(), logit_diff, positions=[7])
    with pytest.raises(ValueError, match="neurons= goes with"):
        patch_sweep(model, pairs(), logit_diff, neurons=[1])
    with pytest.raises(ValueError, match="reads more than the last"):
        patch_sweep(
            load("toy"), pairs(), sink_attention(layer=0, head=0), engine="wave"
        )
