"""The noise floor: patches that cannot matter lie below it, real effects above."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink import precision
from mechsink.models.bridge import BridgeModel
from mechsink.models.float64 import in_float64
from mechsink.models.toy import ToyModel
from mechsink.precision import nudged
from mechsink.run import Model
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer

TYPES = (torch.bfloat16, torch.float32, torch.float16)
N_POS, AT = 8, 3
"""Length of the prompts, and the one position where those of a pair differ."""


def model_in(dtype: torch.dtype, family: str = "llama") -> Model:
    return BridgeModel(copy.deepcopy(tiny(family)).to(dtype), name=family)


def pairs(n: int = 4, model: Model | None = None) -> ms.PromptPairs:
    """With a model: answers that the exchanged token makes much likelier."""
    torch.manual_seed(0)
    clean = torch.randint(3, 80, (n, N_POS))
    corrupted = clean.clone()
    corrupted[:, AT] = (corrupted[:, AT] + 11) % 77 + 3
    answers = torch.arange(5, 5 + n)
    wrong = answers + 30
    if model is not None:
        apart = model.run(clean).logits[:, -1] - model.run(corrupted).logits[:, -1]
        answers, wrong = apart.argmax(-1), apart.argmin(-1)
    return ms.PromptPairs(clean, corrupted, answers=answers, wrong=wrong)


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_patches_that_cannot_matter_are_marked_and_real_ones_are_not(dtype) -> None:
    """Own values at layer 0, then the layer's end before the position that is read."""
    model = model_in(dtype)
    last, given = model.shape.n_layers - 1, pairs(model=model)
    for engine in ("wave", "cells"):
        sweep = ms.patch_sweep(
            model, given, ms.logit_diff, layers=[0, last], engine=engine
        )
        table, marked = sweep.table, sweep.below_noise()
        own = (table["layer"] == 0) & (table["pos"] != AT)
        assert own.sum() == 4 * (N_POS - 1) and marked[own].all()
        at_last = table["layer"] == last
        assert marked[at_last & (table["pos"] < AT)].all()
        # The one patch that exchanges the whole prompt: the metric's whole distance.
        whole = (table["layer"] == 0) & (table["pos"] == AT)
        assert not marked[whole].any()
    after = ms.patch_sweep(model, given, ms.logit_diff, "resid_post", layers=[last])
    assert after.below_noise()[after.table["pos"] < N_POS - 1].all()
    assert not after.below_noise()[after.table["pos"] == N_POS - 1].any()


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.some_cases(2)
def test_changes_differ_from_those_in_float64_by_less_than_the_floor(family) -> None:
    for dtype in TYPES:
        model = model_in(dtype, family)
        true = in_float64(model)
        for site, direction in (("resid_pre", "denoising"), ("z", "noising")):
            both = [
                ms.patch_sweep(each, pairs(), ms.logit_diff, site, direction)
                for each in (model, true)
            ]
            off = (both[0].change - both[1].change).abs().to_numpy()
            floor = np.array(both[0].noise)[both[0].table["prompt"]]
            assert (off <= floor).all(), (dtype, site, (off / floor).max())
            # And it is no idle bound: within three digits of what was lost.
            assert floor.max() < 1000 * off.max(), (dtype, site)


@pytest.mark.matrix
def test_the_floor_grows_with_the_unit_in_the_last_place() -> None:
    floors = [
        ms.noise_floor(model_in(dtype), pairs(), ms.logit_diff).table["floor"].max()
        for dtype in TYPES
    ]
    bf16, single, f16 = floors
    assert 2**7 < f16 / single < 2**17  # 2**13 apart in units
    assert 1 < bf16 / f16 < 2**7  # 2**3


@pytest.mark.matrix
def test_a_float64_model_that_passes_through_float32_has_the_floor_of_float32() -> None:
    double = model_in(torch.float64)
    true = in_float64(double)
    high, low = (ms.noise_floor(m, pairs(), ms.logit_diff) for m in (double, true))
    assert high.eps == torch.finfo(torch.float32).eps
    assert low.eps == torch.finfo(torch.float64).eps
    assert low.table["floor"].max() < 1e-12 < 1e-7 < high.table["floor"].max()
    toy = ToyModel(ToyTransformer(ToyConfig(d_vocab=80)).eval().double())
    assert ms.noise_floor(toy, pairs(), ms.logit_diff).table["floor"].max() < 1e-12


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_number_is_moved_to_a_neighbour(dtype) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    moved = nudged(x, torch.finfo(dtype).eps)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    steps = (moved.view(kind).long() - x.view(kind).long()).abs()
    assert set(steps.unique().tolist()) <= {1, 2}  # 2 just above a power of two
    assert (steps == 1).double().mean() > 0.9
    assert not torch.equal(moved[0], moved[1])
    # The same moves whatever else is in the batch.
    assert torch.equal(nudged(x[1:], torch.finfo(dtype).eps), moved[:, 1:])


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_an_ablation_that_cannot_matter_is_marked(dtype) -> None:
    model, given = model_in(dtype), pairs()
    end = ms.Site("resid_post", model.shape.n_layers - 1)
    early = ms.ablate(
        model, given, [end], ms.zero(), ms.logit_diff, positions=[slice(0, N_POS - 1)]
    )
    assert early.below_noise().all()
    everything = model.shape.all_sites("z")
    assert (
        not ms.ablate(model, given, everything, ms.zero(), ms.logit_diff)
        .below_noise()[early.table["full"].abs() > 1]
        .any()
    )


@pytest.mark.matrix
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_paths_nodes_edges_and_circuits_mark_what_does_nothing(dtype) -> None:
    model = model_in(dtype)
    last, given = model.shape.n_layers - 1, pairs(8, model)
    path = ms.path_patch(
        model, given, ms.logit_diff, sender=ms.Site("mlp_out", last), receivers=None,
        positions=range(N_POS - 1),
    )  # fmt: skip
    for column in ("value", "total", "direct", "indirect", "pure_indirect"):
        assert path.below_noise(column).all(), column
    whole = ms.path_patch(
        model, given, ms.logit_diff, sender=ms.Site("resid_pre", 0), receivers=None
    )
    assert not whole.below_noise("total").any()
    with pytest.raises(ValueError, match=r"column='effect'. Allowed: value, total"):
        path.below_noise("effect")

    edges = [("input", "a0.h0<q>"), ("input", "logits"), ("m0", "m1")]
    exact = ms.exact_edges(model, given, ms.logit_diff, edges=edges)
    marked = exact.below_noise()
    # The prompts' last tokens are the same, so the input's own path carries nothing.
    assert marked[exact.table["target"] == "logits"].all()
    scores = ms.eap(model, given, ms.logit_diff)
    with pytest.raises(ValueError, match=r"EdgeScores by eap holds no noise floor"):
        scores.below_noise()
    found = ms.faithfulness(model, ms.top_edges(scores, 20), given, ms.logit_diff)
    apart = (found.table["full"] - found.table["ablated"]).abs() > max(found.noise)
    assert not found.below_noise()[apart].any() and apart.any()
    nodes = ms.node_effects(model, given)
    assert (
        nodes.noise == ms.path_sweep(model, given, ms.logit_diff, receivers=None).noise
    )
    largest = nodes.table["total"].abs() == nodes.table["total"].abs().max()
    if dtype == torch.float32:
        assert not nodes.below_noise()[largest].any()


class Counting:
    """A model that counts the rows it runs."""

    def __init__(self, model: Model) -> None:
        self._model, self.rows = model, 0

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def run(self, tokens: Tensor, **options):
        self.rows += len(tokens)
        return self._model.run(tokens, **options)


def test_a_floor_costs_a_few_rows_however_many_prompts(monkeypatch) -> None:
    model = ToyModel(ToyTransformer(ToyConfig(d_vocab=80)).eval())
    counting = Counting(model)
    sites = [ms.Site("z", 0)]
    found = ms.ablate(counting, pairs(40), sites, ms.zero(), ms.logit_diff)
    most = precision.PROMPTS * (precision.REPEATS + 1)
    assert counting.rows == 2 * 40 + most
    measured = ms.noise_floor(model, pairs(40), ms.logit_diff).table["floor"]
    known = [0, 13, 26, 39]
    assert [found.noise[i] for i in known] == measured[known].tolist()
    assert set(found.noise) - set(measured) == set()
    assert max(found.noise) == found.noise[1]


@pytest.mark.matrix
def test_a_prompts_floor_does_not_depend_on_the_others() -> None:
    """Up to the rounding of batches, which the floor itself is made of."""
    model, given = model_in(torch.float32), pairs()
    together = ms.patch_sweep(model, given, ms.logit_diff).noise
    for i, noise in enumerate(together):
        one = ms.PromptPairs(
            given.clean[i : i + 1], given.corrupted[i : i + 1],
            answers=given.answers[i : i + 1], wrong=given.wrong[i : i + 1],
        )  # fmt: skip
        alone = ms.patch_sweep(model, one, ms.logit_diff).noise[0]
        assert 1 / 8 < alone / noise < 8


@pytest.mark.matrix
def test_floors_are_saved_and_results_without_one_say_so(tmp_path) -> None:
    sweep = ms.patch_sweep(model_in(torch.float32), pairs(), ms.logit_diff, layers=[1])
    back = ms.PatchingResult.load(sweep.save(tmp_path / "sweep"))
    assert back.noise == sweep.noise and len(back.noise) == 4
    old = replace(back, noise=[])
    with pytest.raises(ValueError, match="this PatchingResult holds no noise floor"):
        old.below_noise()
    old.plot()


def test_a_sink_metric_has_its_own_floor_on_a_model_never_run_before() -> None:
    """Two prompts: as many as a probe of the blocks runs when they are first called."""
    metric = ms.sink_attention(layer=1, head=0)
    wave, cells = (
        ms.patch_sweep(model_in(torch.float32), pairs(2), metric, engine=engine)
        for engine in ("auto", "cells")
    )
    assert wave.meta["settings"]["engine"] == "wave"
    floor = np.array(wave.noise)[wave.table["prompt"]]
    assert 0 < floor.max() < 1e-5
    assert ((wave.table["value"] - cells.table["value"]).abs() <= floor).all()
