"""Every public measurement stores what its numbers depend on, and fails here if not."""

import inspect
import typing
from typing import Any

import pytest
import torch

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.models.trace import TraceModel
from mechsink.results import Result
from tests.models.families import tiny
from toy_tasks import BigramBackcopy

KEYS = {
    "versions", "model", "model_info", "device", "dtype", "attention", "threads",
    "matmul", "seed", "settings", "n_prompts", "n_tokens", "tokens",
}  # fmt: skip
SEED = 7
N_POS = 8


def draw(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 80, (n, N_POS), generator=generator)


def pairs() -> ms.PromptPairs:
    """Of prompts that differ at the third token."""
    clean = draw(4)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 11) % 77 + 3
    given = torch.arange(5, 9)
    return ms.PromptPairs(clean, corrupted, answers=given, wrong=given + 30)


def slots() -> ms.SlotPrompts:
    rows = draw(1).repeat(4, 1)
    rows[:, [2, 4]] = torch.tensor([[5, 8], [5, 9], [6, 8], [6, 9]])
    return ms.SlotPrompts.from_tokens(rows, [2, 4], answers=torch.tensor([3, 4, 5, 6]))


EDGES = [("input", "a1.h0<q>"), ("a0.h1", "m1"), ("m0", "logits"), ("m1", "logits")]
EDGES += [("a1.h0", "logits"), ("input", "m1")]
GIVEN: dict[str, Any] = {
    "prompts": pairs(), "pairs": pairs(), "metric": ms.logit_diff, "tokens": draw(4),
    "sites": [ms.Site("z", 1)], "replacement": ms.resample(draw(3), seed=SEED),
    "span": [2, 3], "sender": ms.Site("z", 0, head=1), "receivers": None,
    "circuit": EDGES, "seed": SEED, "rank": 1, "slot_prompts": slots(), "wait": 1,
    "peek": [1, 2], "n_prompt": 4, "n_new": 2, "dims": [3], "edit": ms.zero_head(),
    "groups": {"even": draw(4) % 2 == 0}, "specific": draw(2), "general": draw(2, 1),
}  # fmt: skip
"""What to pass for a parameter of that name, where it has no default (or is a seed)."""
OWN: dict[str, dict[str, Any]] = {
    "active_dormant": {
        "texts": {"a": draw(4), "b": draw(4, 1)}, "n_pos": N_POS, "confirm": [(1, 0)]
    },
    "debias_positions": {"fit": "mean"},
    "low_rank": {"sites": [ms.Site("z", 1, head=0)]},
    "massive_effect": {"entries": [(1, 0, 3)]},
    "span_contrast": {"general": torch.cat([draw(2)[:, :4], draw(2, 1)[:, 4:]], dim=1)},
    "sink_circuit": {"texts": draw(4), "heads": [(1, 0)]},
}  # fmt: skip
ELSEWHERE = {
    "coupling_test": "takes series, not a model",
    "faithfulness_curve": "needs the scores of all edges: see below",
    "formation": "takes checkpoints: see below",
    "multiple_choice": "tests/experiments/test_multiple_choice.py reads its meta",
    "transfer": "is all_for_one with what a search chose",
    "search_all_for_one": "needs prompts that the model gets right",
    "mlp_creation": "needs secondary sinks: tests/sinks/test_secondary_mlp.py",
    "primary_weakening": "needs secondary sinks: tests/sinks/test_secondary.py",
    "streaming": "an experiment: tests/experiments/test_streaming.py",
    "saliency_generate": "needs a function of its own: see below",
}


def measurements() -> dict[str, Any]:
    """Public functions from a model to a result; pages and studies rest on them."""
    found = {}
    for name in ms.__all__:
        function = getattr(ms, name)
        if not inspect.isfunction(function) or name.endswith(("_report", "_study")):
            continue
        kind = typing.get_type_hints(function).get("return")
        if inspect.isclass(kind) and issubclass(kind, Result):
            takes = inspect.signature(function).parameters
            if next(iter(takes), None) == "model":
                found[name] = function
    return found


MEASURED = sorted(measurements().keys() - ELSEWHERE.keys())
QUICK = ("ablate", "patch_sweep", "sink_scores", "eap_ig", "logit_attribution")


def arguments(name: str, function: Any) -> dict[str, Any]:
    takes = inspect.signature(function).parameters.values()
    wanted = [p.name for p in takes if p.default is p.empty or p.name == "seed"]
    found = {each: GIVEN[each] for each in wanted if each in GIVEN}
    return {**found, **OWN.get(name, {})}


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return BridgeModel(tiny("llama"), name="small llama")


def check(meta: dict[str, Any], seed: int | None) -> None:
    assert meta.keys() >= KEYS, KEYS - meta.keys()
    assert (meta["model"], meta["device"], meta["dtype"]) == (
        "small llama", "cpu", "torch.float32",
    )  # fmt: skip
    assert "eager" in meta["attention"] and meta["threads"] == torch.get_num_threads()
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["seed"] == seed
    assert meta["n_prompts"] == len(meta["tokens"]) > 0
    assert meta["n_tokens"] == sum(len(row["ids"]) for row in meta["tokens"])


@pytest.mark.filterwarnings("ignore:faithfulness. full and ablated")
@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.matrix) for n in MEASURED],
)
def test_a_measurement_stores_what_its_numbers_depend_on(name, model) -> None:
    function = measurements()[name]
    given = arguments(name, function)
    result = function(model, **given)
    # Of an ablation the replacement has the seed.
    has_seed = name == "ablate" or "seed" in inspect.signature(function).parameters
    check(result.meta, SEED if has_seed else None)


def test_no_public_measurement_is_left_out() -> None:
    assert {*MEASURED, *ELSEWHERE} >= measurements().keys()
    assert ELSEWHERE.keys() <= {*ms.__all__}


@pytest.mark.matrix
def test_those_that_need_more_than_a_model(model, tmp_path) -> None:
    scores = ms.eap(model, pairs(), ms.logit_diff, seed=SEED)
    curve = ms.faithfulness_curve(model, scores, pairs(), ms.logit_diff, seed=SEED)
    check(curve.meta, SEED)
    salient = ms.candidate_saliency(model, n_prompt=N_POS)
    check(ms.saliency_generate(model, draw(1), 2, salient).meta, None)


def test_nnsights_version_is_stored_where_it_ran(model) -> None:
    traced = TraceModel(tiny("llama"), name="small llama")
    tokens = draw(1)
    for each, known in ((traced, True), (model, False)):
        versions = ms.residual_norms(each, tokens).meta["versions"]
        assert ("nnsight" in versions) == known
    assert ms.residual_norms(traced, tokens).meta["versions"]["nnsight"]


@pytest.mark.matrix
def test_a_formation_stores_the_seed_of_its_prompts(tmp_path) -> None:
    from dataclasses import replace

    from toy_tasks import PRESETS, train

    preset = replace(PRESETS["bb-cpu"], steps=2, batch=4, checkpoints=(2,))
    run = train(BigramBackcopy.from_text(), preset, tmp_path / "run", progress=False)
    timeline = ms.formation(run, n_prompts=2, n_pos=16, seed=SEED, progress=False)
    assert timeline.meta["seed"] == timeline.meta["settings"]["seed"] == SEED
