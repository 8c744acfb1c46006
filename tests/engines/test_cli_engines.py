"""`--engine`: a verb's work pair by pair, kept, resumed, bad pairs left out."""

import json

import pandas as pd
import pytest

from mechsink.engines import spread
from mechsink.report.patching import PatchReport
from tests.report.test_html import Reader
from tests.report.tiny_model import save_tiny
from tests.test_cli import WEAK, mechsink, pairs_file

pytestmark = pytest.mark.matrix
PAIR = {"clean": "abcd", "corrupted": "abxd", "answer": "e", "wrong": "f"}


@pytest.fixture
def asked(tmp_path):
    """A model and a file whose third pair is of unequal lengths."""
    model = save_tiny(tmp_path / "model")
    rows = [PAIR, {**PAIR, "clean": "ghij"}, {**PAIR, "clean": "abcde"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [model, path]


def test_patch_leaves_out_what_fails_and_says_so(asked, tmp_path):
    args = ["patch", *asked, "--site", "resid_pre", "--out", tmp_path / "out"]
    failed = mechsink(*args, "--engine", "here")
    assert failed.exit_code == 1
    assert "failed on 1 of 3 prompts" in failed.stderr.replace("\n", " ")
    assert len(list((tmp_path / "out/parts/resid_pre/parts").iterdir())) == 2
    done = mechsink(*args, "--engine", "here", "--skip-bad")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out/parts").exists()
    assert (
        "1 pairs gave an error"
        in Reader((tmp_path / "out/report.html").read_text()).text
    )
    report = PatchReport.load(tmp_path / "out")
    assert list(report.meta["left_out"]) == ["2"]
    assert report.table["prompt"].nunique() == 2


def test_an_interrupted_patch_goes_on(asked, tmp_path, monkeypatch):
    args = ["patch", *asked, "--skip-bad", "--site", "resid_pre", "--engine", "here"]
    whole = mechsink(*args, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    take, taken = spread._take, []

    def stop_after_one(*outcome):
        if taken:
            raise KeyboardInterrupt
        taken.append(take(*outcome))

    with monkeypatch.context() as patched:
        patched.setattr(spread, "_take", stop_after_one)
        assert mechsink(*args, "--out", tmp_path / "out").exit_code == 130
    assert mechsink(*args, "--out", tmp_path / "out").exit_code == 0
    tables = [pd.read_csv(tmp_path / name / "table.csv") for name in ("whole", "out")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@WEAK
def test_circuit_scores_in_a_pool(asked, tmp_path):
    args = ["circuit", asked[0], pairs_file(tmp_path), "--edges", "20"]
    tables = []
    for engine in (["here"], ["pool", "--workers", "2"]):
        out = tmp_path / engine[0]
        done = mechsink(*args, "--out", out, "--engine", *engine)
        assert done.exit_code == 0, done.output
        tables.append(pd.read_csv(out / "table.csv"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "cloud"], "Allowed: 'here'"),
        (["--workers", "2"], "means nothing without --engine"),
        (["--engine", "pool", "--address", "auto"], "engine='ray'"),
    ],
)
def test_engine_options_are_checked_before_the_model_is_loaded(
    asked, tmp_path, options, said
):
    _, pairs = asked
    done = mechsink(
        "patch", "./none", pairs, "--skip-bad", *options, "--out", tmp_path / "out"
    )
    assert done.exit_code == 2
    assert said in done.stderr.replace("\n", " ")
