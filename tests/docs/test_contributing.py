"""The worked examples of CONTRIBUTING.md run, and pass what built-in ones must pass."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mechsink as ms
from tests.docs.pages import ROOT, Running, blocks
from tests.interventions import test_attention_edits
from tests.models import test_contract
from tests.test_rooms import ROOMS
from tests.toy_tasks.operators import test_every_operator
from toy_tasks import BigramBackcopy
from toy_tasks.operators import OPERATORS

PAGE = ROOT / "CONTRIBUTING.md"
pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page defines; its own asserts have run."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("contributing"))
    with Running(PAGE) as running:
        for block in blocks(PAGE):
            if block.language == "python":
                running.run(block.code, block.line)
        yield dict(running.module.__dict__)
    OPERATORS.pop("later-half", None)
    patch.undo()


def checks(module: Any, argument: str) -> list[Any]:
    """Tests of a module that take what `argument` names: the slow ones are left out,
    and those of chosen operators."""
    found = []
    for name, test in vars(module).items():
        marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
        cases = marks["parametrize"].args if "parametrize" in marks else ()
        is_for_all = not cases or cases[1] is OPERATORS
        if name.startswith("test_") and "slow" not in marks and is_for_all:
            parameters = set(inspect.signature(test).parameters)
            if argument in parameters and parameters <= {argument, "task"}:
                found.append(test)
    return found


@pytest.mark.filterwarnings("ignore:faithfulness")  # two prompts
def test_the_operator_passes_what_every_operator_must(made: dict[str, Any]) -> None:
    task = BigramBackcopy.from_text("the cat sat on the mat and ate the rat " * 40)
    tests = checks(test_every_operator, "name")
    assert len(tests) >= 6
    for test in tests:
        needs_task = "task" in inspect.signature(test).parameters
        test("later-half", **({"task": task} if needs_task else {}))


def test_the_edit_keeps_rows_and_causality(made: dict[str, Any]) -> None:
    cap = made["cap_attention"]
    test_attention_edits.test_rows_still_sum_to_one_and_stay_causal(cap(0.2))
    pattern = test_attention_edits.PATTERN
    torch.testing.assert_close(cap(1.0)(pattern), pattern)
    capped = cap(0.2)(pattern)[..., 1:, 0]
    assert capped.max() <= 0.2 + 1e-12 < pattern[..., 1:, 0].max()
    below = pattern[..., 0] <= 0.2
    torch.testing.assert_close(cap(0.2)(pattern)[below], pattern[below])
    with pytest.raises(ValueError, match="Allowed: above 0 to 1"):
        cap(0.0)


def test_the_measurement_equals_whole_patterns(made: dict[str, Any]) -> None:
    model = made["OwnModel"]()
    tokens = test_contract.TOKENS
    found = made["first_tokens_share"](model, tokens, first=3).table
    site = ms.Site("pattern", 2)
    pattern = model.run(tokens, read=[site]).cache[site]
    want = pattern[:, :, 3:, :3].sum(-1).mean(-1).flatten().tolist()
    assert found.query("layer == 2")["share"].tolist() == pytest.approx(want)
    with pytest.raises(ValueError, match="outside prompt"):
        made["first_tokens_share"](model, tokens[:, :3], first=3)


def test_the_backend_passes_what_every_backend_must(made: dict[str, Any]) -> None:
    model = ms.load_model(made["OwnModel"]())
    assert isinstance(model, ms.Model) and ms.selfcheck(model).ok
    tests = checks(test_contract, "model")
    assert len(tests) >= 9
    for test in tests:
        test(model)


def test_measurements_take_the_backend(made: dict[str, Any]) -> None:
    model = made["OwnModel"]()
    clean, corrupted = test_contract.TOKENS[:1], test_contract.TOKENS[1:]
    answers, wrong = torch.tensor([3]), torch.tensor([4])
    pairs = ms.PromptPairs(clean, corrupted, answers, wrong)
    sweep = ms.patch_sweep(model, pairs, ms.logit_diff)
    site = ms.Site("resid_pre", 1)
    source = model.run(clean, read=[site]).cache[site]

    def put(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :5], source[:, 5:6], x[:, 6:]], 1)

    logits = model.run(corrupted, edit={site: put}).logits[0, -1]
    row = sweep.table.query("layer == 1 and pos == 5")["value"]
    assert row.item() == pytest.approx((logits[3] - logits[4]).item(), rel=1e-4)
    scores = ms.attribution_patching(model, pairs, ms.logit_diff)
    assert scores.table["score"].abs().max() > 0
    with pytest.raises(ValueError, match="not at hand"):  # refused by name
        ms.eap(model, pairs, ms.logit_diff)


def test_the_map_names_every_room(made: dict[str, Any]) -> None:
    text = PAGE.read_text()
    lines = text[text.index("## Map of rooms") : text.index("## How code reads")]
    missing = [r for r in ROOMS if f"{r}.py" not in lines and f"{r}/" not in lines]
    assert missing == ["visible"], missing  # control characters, of no use to a map


def test_files_that_are_named_exist() -> None:
    import re

    for name in re.findall(
        r"`((?:tests|mechsink|toy_tasks)/[\w/.]+\.py)`", PAGE.read_text()
    ):
        assert Path(ROOT / name).exists(), name
