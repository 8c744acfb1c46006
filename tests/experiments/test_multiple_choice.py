"""The multiple-choice pipeline on planted correct-letter heads, and on SmolLM2."""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.experiments.choices.categories import attention_statistics, category
from mechsink.experiments.choices.experiment import multiple_choice
from mechsink.experiments.choices.nodes import patched_effects, sender
from mechsink.experiments.choices.prompts import Choices, LabelIsRight, LabelMargin
from mechsink.experiments.choices.result import MultipleChoiceResult
from mechsink.interventions.paths import path_patch
from mechsink.models.toy import ToyModel
from mechsink.run import Run
from tests.models.backends import load
from toy_tasks.planted import LABEL_POSITIONS, correct_letter

VARIANTS = ("plain", "grouped", "rms")


def planted(
    variant: Any = "plain", n: int = 60, random_labels: bool = False
) -> tuple[ToyModel, Choices]:
    case = correct_letter(
        n_prompts=n, variant=variant, random_labels=random_labels
    ).double()
    choices = Choices.at(case.clean, LABEL_POSITIONS, case.answers, case.corrupted)
    return ToyModel(case.model, name="planted"), choices


def random_choices(n: int = 6, n_pos: int = 9) -> Choices:
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 80, (n, n_pos), generator=drawn)
    labels = torch.rand(n, 80, generator=drawn).argsort(1)[:, :4]
    correct = torch.arange(n) % 4
    places = torch.tensor([1, 3, 5, 7]).expand(n, -1)
    other = torch.randint(3, 80, (n, n_pos), generator=drawn)
    return Choices(tokens, labels, correct, places, other)


@pytest.mark.first_case
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.matrix
def test_the_planted_head_is_found_named_and_compressed(variant: Any) -> None:
    model, choices = planted(variant)
    _, other = planted(variant, random_labels=True)
    found = multiple_choice(
        model, choices, generalise=other, n_nodes=1, ranks=(0, 2, 3, 4)
    )
    # The head that says the label, alone, and by its pattern.
    (node,) = found.outputs.to_dict("records")
    assert (node["layer"], node["component"]) == (1, "h0")
    assert node["category"] == "correct letter" and node["confirmed"]
    assert found.heads("correct letter") == [(1, 0)]
    assert node["to_correct"] > 0.9 and node["follows"] == 1
    # All of the margin is its own direct part (with a norm, but for 1e-3 of it).
    accuracy = found.accuracy.set_index("labels")
    assert accuracy.loc["given", "accuracy"] == accuracy.loc["other", "accuracy"] == 1
    np.testing.assert_allclose(
        node["direct"], accuracy.loc["given", "margin"], rtol=1e-3
    )
    assert node["direct_low"] <= node["direct"] <= node["direct_high"]
    np.testing.assert_allclose(node["patched_direct"], node["total"], atol=1e-4)
    assert accuracy["error"].max() < 1e-10
    # On labels in random order the same head does the same.
    again = found.table.query("labels == 'other' and is_output")
    assert again[["layer", "component", "category"]].to_numpy().tolist() == [
        [1, "h0", "correct letter"]
    ]
    # Queries and keys are three signs, and the directions serve other labels.
    cut = found.low_rank.set_index(["labels", "site", "rank"]).sort_index()
    for labels in ("given", "other"):
        for site in ("L1H0.q", "L1KV0.k"):
            rows = cut.loc[(labels, site)]
            assert rows.loc[3, "accuracy_after"] == 1
            assert abs(rows.loc[3, "change"]) < 1e-3
            assert rows.loc[2, "change"] < -0.5
            assert rows.loc[0, "accuracy_after"] < 0.5
        assert cut.loc[(labels, "all", 0), "accuracy_after"] < 0.5
    # Values have one dimension a label: four hold A to D, not eight other ones.
    assert cut.loc[("given", "all", 4), "accuracy_after"] == 1
    assert cut.loc[("given", "all", 3), "accuracy_after"] < 1
    assert cut.loc[("other", "L1KV0.v", 4), "accuracy_after"] < 0.8


@pytest.mark.matrix
def test_a_head_that_knows_only_four_letters_does_not_generalise() -> None:
    """Values of the planted head for W to Z set to zero: it finds, and says nothing."""
    model, choices = planted()
    _, other = planted(random_labels=True)
    first, last = 8 + 4, 8 + 8  # tokens of W to Z, after eight contents and A to D
    with torch.no_grad():
        model.toy.blocks[1].attn.W_V[0][first:last] = 0  # type: ignore[union-attr]
    found = multiple_choice(model, choices, generalise=other, n_nodes=1, ranks=(3,))
    accuracy = found.accuracy.set_index("labels")
    assert accuracy.loc["given", "accuracy"] == 1
    says = other.answers < first
    assert accuracy.loc["other", "accuracy"] == pytest.approx(
        says.double().mean().item(), abs=1e-9
    )
    row = found.table.query("labels == 'other' and layer == 1 and component == 'h0'")
    assert row["category"].item() == "correct letter"  # by attention it is one still


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "toy_gqa_relu",
        pytest.param("gemma2", marks=pytest.mark.matrix),
        pytest.param("gpt_neox", marks=pytest.mark.matrix),
        pytest.param("qwen3", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.matrix
def test_patched_effects_are_those_of_path_patching(name: str) -> None:
    model, choices = load(name), random_choices()
    nodes = [(0, "h1"), (1, "mlp"), (2, "h3"), (2, "mlp")]
    found = patched_effects(model, choices, nodes)
    for node in nodes:
        swept = path_patch(
            model, choices.paired(), LabelMargin(choices), sender=sender(node),
            receivers=None, direction="noising",
        ).table  # fmt: skip
        want = -swept[["direct", "total"]].to_numpy()
        np.testing.assert_allclose(found[node].numpy(), want, atol=2e-5)
        assert np.abs(want).max() > 1e-3


def test_parts_of_the_margin_sum_to_it() -> None:
    """On a random model, all nodes and what is no node: the error says how far."""
    choices = random_choices()
    found = multiple_choice(load("gemma2"), choices, n_nodes=2, ranks=(1,))
    assert found.accuracy["error"].item() < 1e-6
    logits = load("gemma2").run(choices.tokens).logits[:, -1]  # type: ignore[arg-type]
    mine = logits.gather(1, choices.labels)
    rest = (mine.sum(1) - mine.gather(1, choices.correct[:, None])[:, 0]) / 3
    margin = mine.gather(1, choices.correct[:, None])[:, 0] - rest
    assert found.accuracy["margin"].item() == pytest.approx(
        margin.mean().item(), abs=1e-5
    )
    is_top = (mine.argmax(1) == choices.correct).double().mean().item()
    assert found.accuracy["accuracy"].item() == pytest.approx(is_top)


def test_margin_and_right_by_hand() -> None:
    """Logits 5, 1, 2, 3 of the labels; the first is right: 5 - (1 + 2 + 3) / 3 = 3."""
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    labels = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    places = torch.tensor([[0, 1, 2, 3]]).expand(2, -1)
    choices = Choices(tokens, labels, torch.tensor([0, 0]), places, tokens)
    logits = torch.zeros(2, 5, 4)
    logits[:, -1] = torch.tensor([5.0, 1, 2, 3])
    (group,) = choices.alone().tokens(planted()[0])
    run = Run(tokens, logits, {})
    assert LabelMargin(choices)(run, group).tolist() == pytest.approx([3, 3 - 8 / 3])
    assert LabelIsRight(choices)(run, group).tolist() == [1, 0]


def test_categories_by_hand() -> None:
    correct = torch.tensor([0, 1, 2, 3] * 3)
    right = torch.nn.functional.one_hot(correct, 4).double()
    none = torch.zeros(12)

    def kind(labels: torch.Tensor, low: float = 0.1) -> str:
        return category(attention_statistics(labels, none, correct), 4, low)

    assert kind(0.5 * right + 0.05) == "correct letter"  # .55 to it, .05 to the others
    assert kind(torch.full((12, 4), 0.2)) == "uniform"
    third = torch.zeros(12, 4)
    third[:, 2] = 0.6
    assert kind(third + 0.05) == "single letter"
    assert kind(torch.full((12, 4), 0.01)) == "amplification"
    assert kind(torch.full((12, 4), 0.01), low=-0.1) == "other"
    assert kind(0.2 * (1 - right)) == "other"  # all but the right one
    seen = attention_statistics(0.5 * right + 0.05, none + 0.25, correct)
    assert seen["to_labels"] == pytest.approx(0.7)
    assert seen["to_correct"] == pytest.approx(0.55 / 0.7)
    assert seen["to_last"] == pytest.approx(0.25)
    assert seen["to_one"] == pytest.approx(0.05 / 0.7)
    assert seen["uneven"] == pytest.approx(0, abs=1e-12)


def test_another_question_is_drawn_where_none_is_given() -> None:
    choices = replace(random_choices(), other=None)
    pairs = choices.paired(seed=3)
    for i in range(len(choices)):
        same = (choices.tokens == pairs.corrupted[i]).all(1)  # type: ignore[attr-defined]
        (j,) = same.nonzero()[:, 0].tolist()
        assert choices.correct[j] != choices.correct[i]
    alone = replace(choices, correct=torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"no other prompt has the 9 tokens.*other="):
        alone.paired()


def test_bad_input_says_what_to_do() -> None:
    model, choices = planted(n=6)
    with pytest.raises(ValueError, match=r"n_nodes=0.*Allowed: 1 to the"):
        multiple_choice(model, choices, n_nodes=0)
    with pytest.raises(ValueError, match=r"rank=\[99\]"):
        multiple_choice(model, choices, n_nodes=1, ranks=[99])
    with pytest.raises(ValueError, match="outside its prompt"):
        replace(choices, places=choices.places + 9)
    with pytest.raises(ValueError, match=r"right answers \[4\].*0 to 3"):
        replace(choices, correct=torch.full((6,), 4))
    with pytest.raises(ValueError, match="one number, for each prompt"):
        replace(choices, tokens=list(choices.tokens[:3]))
    with pytest.raises(ValueError, match="label's own token"):
        Choices.at(choices.tokens, LABEL_POSITIONS, choices.answers * 0)  # type: ignore[arg-type]


@pytest.mark.matrix
def test_saves_and_plots(tmp_path: Any) -> None:
    model, choices = planted(n=12)
    full = multiple_choice(model, choices, n_nodes=2, ranks=(3,))
    # On a random model no head follows the right label: nothing is compressed.
    empty = multiple_choice(load("gpt2"), random_choices(), n_nodes=4, ranks=(3,))
    assert len(empty.low_rank) == 0
    for name, found in (("full", full), ("empty", empty)):
        again = MultipleChoiceResult.load(found.save(tmp_path / name))
        for table in ("table", "low_rank", "accuracy"):
            pd.testing.assert_frame_equal(getattr(again, table), getattr(found, table))
    assert list(empty.low_rank.columns) == list(full.low_rank.columns)
    ax = full.plot()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[-1] == "a1.h0"  # the largest on top
    legend: Any = ax.get_legend()
    named = dict(zip(legend.get_texts(), legend.get_patches(), strict=True))
    colours = {text.get_text(): patch.get_facecolor() for text, patch in named.items()}
    assert colours["correct letter"] == ax.patches[-1].get_facecolor()
    plt.close("all")


@pytest.mark.pretrained
def test_smollm2_runs_and_sums() -> None:
    """At chance on these questions, so only what must hold of any model."""
    import mechsink as ms
    from mechsink.prompt_sets import multiple_choice as make

    model = ms.load_model("smollm2")
    prompts = make(model, 3, content="facts")
    choices = Choices.of_set(model, prompts)
    for i in range(3):
        shown = model.to_strings(choices.tokens[i][choices.places[i]])
        assert shown == list("ABCD")
        assert model.to_strings(choices.labels[i]) == [" A", " B", " C", " D"]
    assert model.to_strings(choices.answers) == prompts.table["answer"].tolist()
    found = multiple_choice(model, prompts, n_nodes=3, ranks=(0, 3))
    assert found.accuracy["error"].item() < 1e-5
    assert len(found.outputs) == 3
    margins = [
        LabelMargin(choices)(model.run(group.clean), group)
        for group in choices.alone().tokens(model)
    ]
    mean = float(torch.cat(margins).mean())
    assert found.accuracy["margin"].item() == pytest.approx(mean, abs=1e-4)
