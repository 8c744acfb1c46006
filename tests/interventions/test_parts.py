"""A sweep of many pairs: its folder, interruption and resumption."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from mechsink.interventions import patching
from mechsink.interventions.patching import PatchingResult, patch_sweep
from mechsink.metrics import answer_logprob, logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from tests.models.backends import load
from tests.models.families import tiny


@pytest.fixture(autouse=True)
def few_pairs_a_batch(monkeypatch) -> None:
    monkeypatch.setattr(patching, "PAIRS_A_BATCH", 2)


def many(n: int = 7) -> PromptPairs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 80, (2, n, 5), generator=generator)
    return PromptPairs(tokens[0], tokens[1], torch.tensor([5]), torch.tensor([9]))


def interrupted(monkeypatch, after: int) -> list[int]:
    """Let so many batches through, then press Ctrl-C; the list says how many ran."""
    real, ran = patching.swept, []

    def swept(*arguments):
        if len(ran) == after:
            raise KeyboardInterrupt
        ran.append(1)
        return real(*arguments)

    monkeypatch.setattr(patching, "swept", swept)
    return ran


def test_an_interrupted_sweep_goes_on_where_it_was(monkeypatch, tmp_path) -> None:
    model = load("llama")
    whole = patch_sweep(model, many(), logit_diff)
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            patch_sweep(model, many(), logit_diff, folder=tmp_path)
    assert len(list(tmp_path.glob("part-*.safetensors"))) == 2
    with monkeypatch.context() as patch:
        ran = interrupted(patch, after=99)
        result = patch_sweep(model, many(), logit_diff, folder=tmp_path)
    assert len(ran) == 2  # of four batches, two were there
    pd.testing.assert_frame_equal(result.table, whole.table)
    assert result.clean == whole.clean
    assert not list(tmp_path.glob("part-*"))
    pd.testing.assert_frame_equal(PatchingResult.load(tmp_path).table, whole.table)
    with monkeypatch.context() as patch:
        interrupted(patch, after=0)
        again = patch_sweep(model, many(), logit_diff, folder=tmp_path)
    pd.testing.assert_frame_equal(again.table, whole.table)


def test_a_folder_of_another_sweep_is_refused(monkeypatch, tmp_path: Path) -> None:
    model = load("llama")
    interrupted(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        patch_sweep(model, many(), logit_diff, folder=tmp_path)
    with pytest.raises(ValueError, match="differs in metric"):
        patch_sweep(model, many(), answer_logprob, folder=tmp_path)
    with pytest.raises(ValueError, match="differs in site"):
        patch_sweep(model, many(), logit_diff, "mlp_out", folder=tmp_path)
    with pytest.raises(ValueError, match="differs in clean, corrupted"):
        patch_sweep(model, many(6), logit_diff, folder=tmp_path)
    other = BridgeModel(tiny("llama", seed=1), name="llama")
    with pytest.raises(ValueError, match="logits on the first prompt"):
        patch_sweep(other, many(), logit_diff, folder=tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text())["site"] == "resid_pre"


def test_a_result_saved_by_hand_is_not_taken_for_this_sweeps(tmp_path: Path) -> None:
    model = load("llama")
    patch_sweep(model, many(), answer_logprob).save(tmp_path)
    with pytest.raises(ValueError, match="holds a result of another call"):
        patch_sweep(model, many(), logit_diff, folder=tmp_path)
    assert not (tmp_path / "sweep.json").exists()


def test_a_part_cut_short_is_not_taken_for_one(monkeypatch, tmp_path: Path) -> None:
    model = load("toy")
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            patch_sweep(model, many(), logit_diff, folder=tmp_path)
    (part,) = tmp_path.glob("part-*")
    part.write_bytes(part.read_bytes()[:-40])
    result = patch_sweep(model, many(), logit_diff, folder=tmp_path)
    pd.testing.assert_frame_equal(
        result.table, patch_sweep(model, many(), logit_diff).table
    )
