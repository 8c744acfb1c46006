"""What single planted models do, beyond their edges: against oracles and by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy_tasks.edge_brute_force import edges_of, effects, forward
from toy_tasks.planted import (
    LABEL_POSITIONS,
    and_gate,
    backcopy,
    backcopy_task,
    correct_letter,
    duplicate_token,
    induction,
    noisy_gate,
    or_gate,
)

VARIANTS = ["plain", "grouped", "rms"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def patterns(model, tokens, layer) -> Tensor:
    """Attention of a layer, [prompt, head, query, key]."""
    seen = []
    point = model.blocks[layer].attn.hook_pattern
    handle = point.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0]


@every_variant
@pytest.mark.parametrize("n_bits", [2, 3, 4])
@pytest.mark.parametrize("saturated", [False, True])
def test_gates_have_their_truth_table(variant, n_bits, saturated):
    for build, says in ((and_gate, all), (or_gate, any)):
        case = build(variant=variant, n_bits=n_bits, saturated=saturated, n_prompts=4)
        tokens = case.clean[:1].repeat(2**n_bits, 1)
        table = list(itertools.product([0, 1], repeat=n_bits))
        tokens[:, 2:-1:2] = torch.tensor(table)
        said = case.model(tokens)[:, -1].argmax(-1).tolist()
        want = ["yes" if says(bits) else "no" for bits in table]
        assert [case.vocab[token] for token in said] == want


def test_gate_by_hand():
    """Two bits, plain: hit e^5 / (e^5 + 5), miss 1 / (e^5 + 5), AND at the knee."""
    case = and_gate(n_prompts=2).double()
    with torch.no_grad():
        _, writes = forward(case.model, case.model.embed(case.corrupted))
    place = case.directions["sum"][0]
    e5 = torch.tensor(5.0).double().exp()
    # Prompt 0 has lost bit 0: its own head sees the other bit in passing only.
    assert writes["a0.h0"][0, -1, place].item() == pytest.approx((1 / (e5 + 5)).item())
    assert writes["a0.h1"][0, -1, place].item() == pytest.approx((e5 / (e5 + 5)).item())
    difference = case.logit_diff(case.model(case.clean))
    assert difference.tolist() == pytest.approx([4, 4])  # 8 - 8 / 2
    difference = case.logit_diff(case.model(case.corrupted))
    assert difference.tolist() == pytest.approx([-4, -4], abs=1e-5)


@pytest.mark.first_case
@every_variant
@pytest.mark.parametrize("saturated", [False, True])
def test_backcopy_meets_the_oracle(variant, saturated):
    task = backcopy_task()
    case = backcopy(variant=variant, saturated=saturated).double()
    tokens = task.sample(2000, 12, seed=3)
    with torch.no_grad():
        ours = case.model(tokens).log_softmax(-1)
    oracle = task.oracle_logprobs(tokens)
    # KL from the oracle's law: the excess loss, its expectation over the next token.
    excess = (oracle.exp() * (oracle - ours)).nan_to_num(0).sum(-1)
    trigger = task.is_trigger(tokens)
    assert excess[trigger].mean() < 1e-4
    assert excess[~trigger].mean() < 2e-3
    assert excess.max() < 0.02


@every_variant
def test_backcopy_head_rests_or_copies(variant):
    task = backcopy_task()
    case = backcopy(variant=variant).double()
    tokens = task.sample(500, 12, seed=4)
    attention = patterns(case.model, tokens, 0)[:, 0]
    trigger = task.is_trigger(tokens)
    to_bos = attention[:, :, 0]
    to_previous = attention.diagonal(offset=-1, dim1=1, dim2=2)
    assert to_bos[~trigger].min() > 0.9
    assert to_bos[trigger].max() < 0.01
    assert to_previous[trigger[:, 1:]].min() > 0.9
    # The sink's value is zero: what it writes is nothing, others write their token.
    block: Any = case.model.blocks[0]
    attn, normed = block.attn, block.ln1(case.model.embed(tokens))
    values = normed @ attn.W_V[0] @ attn.W_O[0]
    assert values[:, 0].abs().max() == 0
    assert values[:, 1:].norm(dim=-1).min() > 0.99


def test_backcopy_table_is_written_as_is():
    """After b: c with 1/2, e with 1/4, f and h with 1/8, by the MLP alone."""
    case = backcopy(distractors=False).double()
    b = case.vocab.index("b")
    tokens = torch.tensor([[case.vocab.index("<s>"), b]])
    with torch.no_grad():
        _, writes = forward(case.model, case.model.embed(tokens))
        logits = writes["m0"][0, -1] @ case.model.W_U
    want = torch.zeros(9).double()
    for letter, p in {"c": 1 / 2, "e": 1 / 4, "f": 1 / 8, "h": 1 / 8}.items():
        want[case.vocab.index(letter)] = 16 + torch.tensor(p).double().log()
    torch.testing.assert_close(logits, want, rtol=0, atol=1e-5)  # float32 weights


@every_variant
def test_heads_look_where_they_should(variant):
    case = induction(variant=variant)
    rows = torch.arange(len(case.clean))
    previous = patterns(case.model, case.clean, 0)[:, 0]
    assert previous.diagonal(offset=-1, dim1=1, dim2=2).min() > 0.8
    target = (case.clean == case.answers[:, None]).double().argmax(1)
    assert patterns(case.model, case.clean, 1)[rows, 0, -1, target].min() > 0.5

    case = duplicate_token(variant=variant)
    first = (case.clean == case.answers[:, None]).double().argmax(1)
    looked = patterns(case.model, case.clean, 0)[:, 0]
    second = (case.clean == case.answers[:, None]).double().cumsum(1).argmax(1)
    assert looked[rows, second, first].min() > 0.7
    ordinary = looked[rows[:, None], torch.arange(1, 9)[None], 0]
    assert (ordinary > 0.5).sum(1).min() >= 7  # all but the copy rest on <s>


@every_variant
@pytest.mark.parametrize("random_labels", [False, True])
def test_correct_letter_head(variant, random_labels):
    case = correct_letter(variant=variant, random_labels=random_labels).double()
    labels = case.clean[:, LABEL_POSITIONS]
    answers = {case.vocab[t] for t in case.answers.tolist()}
    assert answers == set("ABCDWXYZ" if random_labels else "ABCD")
    attention = patterns(case.model, case.clean, 1)[:, 0, -1]
    right = labels == case.answers[:, None]
    assert right.sum(1).eq(1).all()
    on_labels = attention[:, LABEL_POSITIONS]
    assert on_labels[right].min() > 0.7
    # Rank 3: rebuilding queries from three singular directions loses nothing.
    block: Any = case.model.blocks[1]
    attn = block.attn
    sizes = torch.linalg.svdvals(attn.W_Q[0] @ attn.W_K[0].T)
    assert sizes[2] > 0.1
    assert sizes[3] < 1e-12


def test_fixed_labels_are_in_order_and_random_ones_are_not():
    fixed, drawn = correct_letter(), correct_letter(random_labels=True)
    names = [fixed.vocab[t] for t in fixed.clean[0, LABEL_POSITIONS].tolist()]
    assert names == ["A", "B", "C", "D"]
    assert fixed.clean[:, LABEL_POSITIONS].unique(dim=0).shape[0] == 1
    assert drawn.clean[:, LABEL_POSITIONS].unique(dim=0).shape[0] > 80


@pytest.mark.parametrize("arms", [(), (1,), (0, 1), (0, 2), (0, 1, 2)])
def test_noisy_gate_knows_its_faithfulness(arms):
    """Brute force: all 216 pairs, other edges carry corrupted values."""
    gate = noisy_gate(arms=arms)
    case = gate.population.double()
    assert len(set(case_rows(case))) == len(case.clean) == 216
    model = case.model
    with torch.no_grad():
        clean, corrupted = (model.embed(t) for t in (case.clean, case.corrupted))
        _, writes = forward(model, corrupted)
        outside = {e: writes[e[0]] for e in edges_of(model) if e not in gate.circuit}
        everywhere = {e: writes[e[0]] for e in edges_of(model)}
        full, circuit, ablated = (
            case.logit_diff(forward(model, clean, instead)[0])
            for instead in ({}, outside, everywhere)
        )
    assert gate.full == pytest.approx(full.mean().item(), abs=1e-9)
    assert gate.of_circuit == pytest.approx(circuit.mean().item(), abs=1e-9)
    assert gate.ablated == pytest.approx(ablated.mean().item(), abs=1e-9)
    want = (circuit - ablated).mean() / (full - ablated).mean()
    assert gate.faithfulness == pytest.approx(want.item(), abs=1e-9)
    assert full.std() > 1  # prompts differ
    if len(arms) in (1, 2):
        assert 0.1 < gate.faithfulness < 0.9
        assert circuit.std() > 0.5


def test_noisy_gate_is_a_planted_circuit():
    case = noisy_gate().population.double()
    got = effects(case)
    assert min(got[e] for e in case.edges) >= case.effect_floor
    assert max(abs(x) for e, x in got.items() if e not in case.edges) < 1e-9


def test_noisy_gate_samples_its_population():
    gate = noisy_gate()
    drawn = gate.sample(20_000, seed=1)
    number = {row: n for n, row in enumerate(case_rows(gate.population))}
    counts = torch.tensor([number[row] for row in case_rows(drawn)])
    counts = counts.bincount(minlength=216).double()
    # Chi-square with 215 degrees of freedom: 215 +- 21.
    chi = ((counts - 20_000 / 216) ** 2 / (20_000 / 216)).sum()
    assert 130 < chi < 300
    assert torch.equal(gate.sample(50, seed=2).clean, gate.sample(50, seed=2).clean)
    with pytest.raises(ValueError, match=r"n_prompts=0\. It must be at least 1"):
        gate.sample(0, seed=0)
    with pytest.raises(ValueError, match=r"arms=\(0, 3\)"):
        noisy_gate(arms=(0, 3))


def case_rows(case):
    return [tuple(row) for row in torch.cat([case.clean, case.corrupted], 1).tolist()]
