"""Sweeps on the wave engine against one forward pass per place."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mechsink.interventions.patching import patch_sweep
from mechsink.metrics import answer_logprob, logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.plain import PlainModel
from mechsink.models.replay_blocks import hugging_face_base
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Run
from mechsink.sites import Site
from tests.models.backends import SMALL, load
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer

QUICK = ["llama"]
MATRIX = [
    "toy_gqa_relu",
    "gpt_neox",
    "gpt2",
    "qwen3",
    "gemma2",
    "mistral",
    "olmo2",
    "bloom",
    "toy",
    "toy_carriers",
    "toy_rotary",
    "toy_alibi",
]
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.matrix) for name in MATRIX)]
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k",
         "v", "pattern"]  # fmt: skip


def pairs(n: int = 2, n_pos: int = 7) -> PromptPairs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 80, (2, n, n_pos), generator=generator)
    answers, wrong = torch.tensor([5, 6, 1, 2])[:n], torch.tensor([9, 7, 3, 4])[:n]
    return PromptPairs(tokens[0], tokens[1], answers, wrong)


@pytest.mark.first_case
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.some_cases(24)
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


@dataclass(frozen=True)
class Everywhere:
    """Reads all logits and the residual stream: no promise made."""

    reads: frozenset[Site] = frozenset({Site("resid_pre", 1), Site("resid_post", 1)})

    def __call__(self, run: Run, prompts: Any) -> torch.Tensor:
        stream = sum(run.cache[site].square().mean((1, 2)) for site in self.reads)
        return run.logits.logsumexp(-1).mean(-1) + stream


METRICS = {
    "answer_logprob": answer_logprob,
    "sink_attention": sink_attention(layer=1, head=2, position=1),
    "everywhere": Everywhere(),
}


@pytest.mark.first_case
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.some_cases(10)
def test_every_metric_on_the_wave(family: str, metric: str) -> None:
    model = load(family)
    for site in ("resid_pre", "resid_post", "mlp_out", "q", "v", "pattern"):
        got, want = (
            patch_sweep(model, pairs(), METRICS[metric], site, engine=engine)
            for engine in ("auto", "cells")
        )
        ran = got.meta["settings"]["engine"]
        if family == "bloom" and (metric == "sink_attention" or site == "pattern"):
            continue  # bloom's own attention shows no pattern in replay
        inside = metric == "sink_attention" and site in ("q", "pattern")
        assert ran.startswith("wave; cells in layer 1" if inside else "wave"), ran
        scale = want.table["value"].abs().max()
        off = (got.table["value"] - want.table["value"]).abs().max()
        assert off <= 1e-4 * scale, site


def test_a_sink_metric_sees_no_later_layer() -> None:
    sink = patch_sweep(
        load("llama"), pairs(), sink_attention(layer=1, head=2), "mlp_out"
    )
    late = sink.table[sink.table["layer"] >= 1]
    assert (late["effect"] == 0).all()  # nothing was computed there
    assert sink.table["effect"].abs().max() > 1e-3


@pytest.mark.parametrize("site", ["resid_post", "z", "k"])
def test_what_both_prompts_share_is_left_alone_to_the_last_bit(site: str) -> None:
    own = pairs(3, 8)
    clean, corrupted = own.clean.clone(), own.clean.clone()  # type: ignore[union-attr]
    corrupted[0, 5], corrupted[1, 2] = 70, 71  # the third pair is one prompt twice
    mixed = PromptPairs(clean, corrupted, torch.tensor([5]), torch.tensor([9]))
    model = load("llama")
    got, want = (
        patch_sweep(model, mixed, logit_diff, site, "noising", engine=engine)
        for engine in ("wave", "cells")
    )
    assert got.table["value"].to_numpy() == pytest.approx(
        want.table["value"].to_numpy(), abs=1e-4
    )
    for prompt, differs in enumerate((5, 2, 8)):
        here = got.table[got.table["prompt"] == prompt]
        shared = here[here["pos"] < differs]["value"]
        assert len(shared) and (shared == got.clean[prompt]).all()
    same = got.table[got.table["prompt"] == 2]
    assert same["effect"].isna().all() and (same["value"] == got.clean[2]).all()


@pytest.mark.matrix
def test_results_do_not_depend_on_the_batch(monkeypatch) -> None:
    from mechsink.interventions import cells, sweep

    model = load("llama")
    for engine in ("wave", "cells"):
        whole = patch_sweep(model, pairs(), logit_diff, "z", engine=engine).table
        for rows in (1, 3, 7):
            for module in (sweep, cells):
                monkeypatch.setattr(
                    module, "rows_that_fit", lambda *a, rows=rows, **k: rows
                )
            small = patch_sweep(model, pairs(), logit_diff, "z", engine=engine).table
            assert small["value"].to_numpy() == pytest.approx(
                whole["value"].to_numpy(), abs=1e-4
            )


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_positions_grouped_in_one_wave_or_each_in_its_own(monkeypatch, site) -> None:
    from mechsink.interventions import sweep

    found = []
    for cost in (0.0, 35.0, 1e9):
        monkeypatch.setitem(sweep.CALL_COST, "cpu", cost)
        found.append(patch_sweep(load("llama"), pairs(), logit_diff, site).table)
    for table in found[1:]:
        assert table["value"].to_numpy() == pytest.approx(
            found[0]["value"].to_numpy(), abs=1e-4
        )


@pytest.mark.matrix
def test_out_of_memory_on_a_gpu_is_tried_with_half(monkeypatch) -> None:
    from mechsink.interventions import sweep

    model, whole = load("llama"), sweep.wave
    want = patch_sweep(model, pairs(4), logit_diff).table
    sizes: list[int] = []

    def small_only(base, entries, *rest):
        sizes.append(len(base.tokens) * sum(len(e.streams) for e in entries))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(base, entries, *rest)

    monkeypatch.setattr(sweep, "wave", small_only)
    monkeypatch.setattr(sweep, "rows_that_fit", lambda *a, **k: 64)
    got = patch_sweep(model, pairs(4), logit_diff).table
    assert got["value"].to_numpy() == pytest.approx(want["value"].to_numpy(), abs=1e-4)
    assert max(sizes) > 2 and sizes[-1] <= 2
    monkeypatch.setattr(sweep, "wave", _always_full)
    with pytest.raises(MemoryError, match="not even one patch"):
        patch_sweep(model, pairs(4), logit_diff)


def _always_full(*arguments: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_pairs_of_different_lengths_share_a_table() -> None:
    rows = [torch.arange(5), torch.arange(10, 17)]
    other = [row + 30 for row in rows]
    mixed = PromptPairs(rows, other, torch.tensor([5]), torch.tensor([9]))
    table = patch_sweep(load("toy"), mixed, logit_diff).table
    assert table.groupby("prompt")["pos"].max().tolist() == [4, 6]


class Stranger:
    """A model that is no backend's: the protocol and nothing else."""

    def __init__(self, model: Any) -> None:
        for name in ("name", "shape", "device", "dtype", "info", "to_tokens",
                     "to_strings", "run", "visit", "w_o"):  # fmt: skip
            setattr(self, name, getattr(model, name))


def test_a_model_that_cannot_be_replayed_is_run_once_a_place() -> None:
    want = patch_sweep(load("llama"), pairs(), logit_diff, "mlp_out")
    got = patch_sweep(Stranger(load("llama")), pairs(), logit_diff, "mlp_out")
    assert got.meta["settings"]["engine"].startswith("cells (resume: a Stranger can")
    assert got.table["value"].to_numpy() == pytest.approx(
        want.table["value"].to_numpy(), abs=1e-4
    )


def test_a_toy_with_a_prefix_is_run_once_a_place() -> None:
    """Earlier positions see later ones there: only whole runs are right."""
    toy = ToyTransformer(ToyConfig(**SMALL, prefix=3)).eval()
    found = patch_sweep(ToyModel(toy), pairs(), logit_diff)
    assert "(prefix)" in found.meta["settings"]["engine"]
    assert found.table["effect"].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_the_same_sweep_twice_gives_the_same_bits(family: str) -> None:
    model = BridgeModel(tiny(family))  # new: the first pass may settle nothing later
    first, second = (patch_sweep(model, pairs(), logit_diff).table for _ in range(2))
    assert (first["value"] == second["value"]).all()


def test_a_model_that_sees_ahead_is_not_replayed(monkeypatch) -> None:
    own = tiny("llama")
    for layer in own.model.layers:  # attention to everything
        inner = layer.self_attn.forward

        def both_ways(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
            hidden = kwargs["hidden_states"]
            n = hidden.shape[1]
            seen = torch.zeros(1, 1, n, n)
            return inner(*args, **{**kwargs, "attention_mask": seen})

        layer.self_attn.forward = both_ways
    plain = PlainModel(own)
    assert not plain.is_causal
    with pytest.raises(ValueError, match="earlier positions see later ones"):
        hugging_face_base(plain, torch.arange(6)[None])
    assert PlainModel(tiny("llama")).is_causal


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
    inside = Everywhere(frozenset({Site("z", 1)}))
    with pytest.raises(ValueError, match=r"reads L1.z, inside a block"):
        patch_sweep(load("toy"), pairs(), inside, engine="wave")
