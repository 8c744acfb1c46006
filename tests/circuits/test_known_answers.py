"""Planted circuits, known edge by edge, through mechsink's own methods."""

from collections.abc import Callable
from functools import partial

import pytest

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.edges import (
    eap,
    eap_clean_corrupted,
    eap_ig,
    eap_ig_activations,
)
from mechsink.attribution.exact import exact_edges
from mechsink.circuits.acdc import acdc
from mechsink.circuits.compare import edge_auroc
from mechsink.circuits.selection import top_edges
from mechsink.metrics import logit_diff
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from toy_tasks.planted import PLANTED, SATURATED, Planted

SOME = ("induction-rms", "and-grouped", "or", "backcopy-rms")
CASES = [n if n in SOME else pytest.param(n, marks=pytest.mark.matrix) for n in PLANTED]


def asked(case: Planted) -> tuple[ToyModel, PromptPairs]:
    case = case.double()
    pairs = PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
    return ToyModel(case.model, name=case.name), pairs


def auroc(method: Callable[..., EdgeScores], case: Planted) -> float:
    model, pairs = asked(case)
    return edge_auroc(method(model, pairs, logit_diff), case.edges)


@pytest.mark.first_case
@pytest.mark.parametrize("name", CASES)
@pytest.mark.some_cases(6)
def test_every_planted_edge_is_found(name: str) -> None:
    case = PLANTED[name](n_prompts=40)
    model, pairs = asked(case)
    exact = exact_edges(model, pairs, logit_diff)
    assert edge_auroc(exact, case.edges) == 1.0
    found = exact.table.set_index(["source", "target"])["score"]
    true = found.index.isin(list(case.edges))
    assert found[true].min() >= case.effect_floor
    assert found[~true].abs().max() <= case.noise_bound
    # Its edges are the strongest ones, and no loose ends among them are pruned away.
    assert set(top_edges(exact, len(case.edges)).edges) == case.edges
    assert auroc(partial(eap_ig, steps=20), case) >= 0.98
    assert auroc(partial(eap_ig_activations, steps=5), case) >= 0.9


@pytest.mark.matrix
@pytest.mark.parametrize("name", SATURATED)
@pytest.mark.some_cases(5)
def test_saturated_cases_stand_apart(name: str) -> None:
    """Patching still finds every edge; of gradients only that they run is asked here.

    Their figures stand in docs/attribution.md: at the clean run they nearly vanish.
    """
    case = SATURATED[name](n_prompts=40)
    assert auroc(exact_edges, case) == 1.0
    for method in (eap, eap_clean_corrupted, eap_ig):
        assert 0 <= auroc(method, case) <= 1


@pytest.mark.matrix  # jax compiles for seconds
@pytest.mark.parametrize("program", ["tracr_hist", "tracr_next"])
def test_compiled_programs(program: str) -> None:
    pytest.importorskip("tracr", reason="pip install mechsink[tracr] to run it")
    from tests.toy_tasks import tracr_models

    # tracr's attention and step functions are saturated: integrated gradients find
    # the edges of "next" and miss those of "hist", so only patching is held to them.
    case = getattr(tracr_models, program)()
    model, pairs = asked(case)
    exact = exact_edges(model, pairs, logit_diff)
    assert edge_auroc(exact, case.edges) == 1.0
    tau = case.noise_bound + 0.1 * case.effect_floor
    found = acdc(model, pairs, logit_diff, tau=tau)
    assert set(found.edges) == case.edges
