"""Planted circuits: their edges against brute force, for every case and variant."""

from typing import Any, cast

import jaxtyping
import pytest
import torch

from tests.toy_tasks.edge_brute_force import (
    auroc,
    edges_of,
    effects,
    forward,
    integrated,
    pruned,
)
from toy_tasks.planted import (
    PLANTED,
    SATURATED,
    and_gate,
    correct_letter,
    induction,
    or_gate,
)

ALL = {**PLANTED, **SATURATED}
MIDPOINTS = [(step + 0.5) / 20 for step in range(20)]
every_case = pytest.mark.parametrize(
    "name",
    [
        *PLANTED,
        *(pytest.param(name, marks=pytest.mark.matrix) for name in SATURATED),
    ],
)
every_main_case = pytest.mark.parametrize("name", PLANTED)


@pytest.mark.first_case
@every_case
@pytest.mark.some_cases(12)
def test_patching_finds_the_planted_edges(name):
    case = ALL[name](n_prompts=24).double()
    got = effects(case)
    assert case.name == name
    assert case.edges <= case.all_edges <= set(got)
    check_effects(case, got)


def check_effects(case, got):
    true = [got[e] for e in case.edges]
    false = [abs(x) for e, x in got.items() if e not in case.edges]
    assert min(true) >= case.effect_floor
    assert max(false) <= case.noise_bound
    assert case.noise_bound < 0.3 * case.effect_floor
    assert auroc(got, case.edges) == 1


@pytest.mark.matrix
@pytest.mark.parametrize("build", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize(("n_prompts", "seed"), [(4, 1), (31, 3), (100, 0)])
@pytest.mark.some_cases(14)
def test_other_draws_keep_the_promise(build, n_prompts, seed):
    case = build(n_prompts=n_prompts, seed=seed).double()
    check_effects(case, effects(case))


@pytest.mark.parametrize("gate", [and_gate, or_gate])
@pytest.mark.parametrize("variant", ["plain", "grouped"])
def test_wider_gates_have_their_edges_too(gate, variant):
    case = gate(variant=variant, n_bits=3, n_prompts=30, seed=5).double()
    check_effects(case, effects(case))


@pytest.mark.first_case
@pytest.mark.parametrize("variant", ["plain", "grouped", "rms"])
def test_random_labels_leave_the_edges(variant):
    case = correct_letter(
        variant=variant, random_labels=True, n_prompts=45, seed=2
    ).double()
    labels = {case.vocab[t] for t in case.answers.tolist()}
    assert labels == set("ABCDWXYZ")
    check_effects(case, effects(case))


@every_case
def test_the_model_does_its_task(name):
    case = ALL[name]()
    logits = case.model(case.clean)
    assert torch.equal(logits[:, -1].argmax(-1), case.answers)
    assert torch.equal(case.model(case.corrupted)[:, -1].argmax(-1), case.wrong)
    assert (case.answers != case.wrong).all()
    # float32 weights are the float64 ones; the brute force runs the same model.
    double = case.double().model
    exact = double(case.clean)
    torch.testing.assert_close(exact.float(), logits, rtol=1e-4, atol=1e-4)
    split = forward(double, double.embed(case.clean))[0]
    torch.testing.assert_close(split, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.first_case
@every_main_case
def test_integrated_gradients_find_them_too(name):
    case = PLANTED[name](n_prompts=24).double()
    assert auroc(integrated(case, MIDPOINTS), case.edges) >= 0.98


@pytest.mark.first_case
@every_main_case
def test_pruning_leaves_exactly_the_planted_edges(name):
    """By the metric and by KL, tau between what false and true edges do."""
    case = PLANTED[name](n_prompts=24).double()

    def drop(full, now):
        return (case.logit_diff(full) - case.logit_diff(now)).mean().abs().item()

    def kl(full, now):
        p, q = (x[:, -1].log_softmax(-1) for x in (full, now))
        return (p.exp() * (p - q)).sum(-1).mean().item()

    tau = case.noise_bound + 0.1 * case.effect_floor
    assert pruned(case, tau, drop) == case.edges
    assert pruned(case, 0.1, kl) == case.edges


ROUTED = [n for n in PLANTED if n.split("-")[0] not in ("and", "or")]


@pytest.mark.matrix
@pytest.mark.parametrize("name", ROUTED)
def test_only_saturated_attention_hides_from_the_gradient(name):
    """Gradient at the clean prompt against the true effect, on the query edge."""
    shares = []
    for saturated in (False, True):
        case = PLANTED[name](saturated=saturated, n_prompts=24).double()
        gradients, true = integrated(case, [1.0]), effects(case)
        queries = [e for e in case.edges if e[1].endswith("<q>")]
        assert queries
        shares.append(max(gradients[e] / true[e] for e in queries))
    assert shares[0] > 0.05
    assert shares[1] < 1e-3


@pytest.mark.first_case
@every_case
def test_distractors_work_and_change_nothing(name):
    case, bare = ALL[name]().double(), ALL[name](distractors=False).double()
    assert case.edges == bare.edges
    assert torch.equal(case.clean, bare.clean)
    with torch.no_grad():
        model = case.model
        _, ours = forward(model, model.embed(case.clean))
        _, theirs = forward(model, model.embed(case.corrupted))
        logits, alone = (c.model(c.clean)[:, -1] for c in (case, bare))
    assert len(case.distractor_heads) >= 2 * model.config.n_layers
    planted = {node for edge in case.all_edges for node in edge}
    for head in case.distractor_heads:
        assert head not in planted
        assert ours[head].norm(dim=-1).mean() > 0.05
        assert (ours[head] - theirs[head]).norm(dim=-1).max() > 0.02
    junk = list(case.directions["junk"])
    for layer in range(model.config.n_layers):
        assert ours[f"m{layer}"][..., junk].norm(dim=-1).mean() > 0.3
    if "rms" in name:
        assert (logits - alone).abs().max() < 0.3
        assert (logits - alone).abs().max() > 0  # the norm does see them
    else:
        torch.testing.assert_close(logits, alone, rtol=1e-12, atol=1e-12)
    assert not bare.distractor_heads


@pytest.mark.first_case
@every_case
def test_variants_are_what_they_say(name):
    config = ALL[name]().model.config
    assert (config.kv_heads < config.n_heads) == ("grouped" in name)
    assert config.norm == ("rms" if "rms" in name else "none")
    bare = ALL[name](distractors=False).model.config
    assert (bare.kv_heads < bare.n_heads) == ("grouped" in name)


@pytest.mark.first_case
@pytest.mark.matrix
def test_prompts_follow_the_seed():
    for build in PLANTED.values():
        a, b, c = build(seed=1), build(seed=1), build(seed=2)
        assert torch.equal(a.clean, b.clean)
        assert torch.equal(a.corrupted, b.corrupted)
        assert not torch.equal(a.clean, c.clean)
        assert len(build(n_prompts=7).clean) == 7
    case = PLANTED["or"]()
    assert case.texts(case.clean)[0].split()[0] == "<s>"
    assert len(edges_of(case.model)) == len(set(edges_of(case.model)))


def test_bad_input(monkeypatch):
    # Where no shape checker runs, the function itself refuses.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"variant='gqa'.*'grouped'"):
        induction(variant=cast(Any, "gqa"))
    with pytest.raises(ValueError, match=r"n_prompts=2\. Allowed: 3 and more"):
        PLANTED["induction"](n_prompts=2)
    with pytest.raises(ValueError, match=r"n_bits=5\. Allowed: 2 to 4"):
        and_gate(n_bits=5)
