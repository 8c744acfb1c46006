"""The command line: help, errors in words, exit codes, two small runs."""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mechsink.attribution.edges import eap_ig
from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import top_edges
from mechsink.cli import app
from mechsink.metrics import logit_diff
from mechsink.models.load import load_model
from mechsink.prompts import PromptPairs
from mechsink.report.all_for_one import AllForOneReport
from mechsink.report.edge_result import EdgeReport
from tests.report.test_html import Reader
from tests.report.tiny_model import save_tiny

VERBS = ["demo", "sinks", "heads", "models", "form", "patch", "circuit", "af1"]
VERBS += ["experiment"]
NAMES = [
    "operators",
    "formation",
    "emergence",
    "mitigation",
    "dynamics",
    "regression",
    "streaming",
]
STUDIES = [f"experiment {name}" for name in NAMES]


def mechsink(*args: str):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_help_names_every_verb_and_is_quick():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mechsink", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for verb in VERBS:
        assert verb in done.stdout
    assert time.perf_counter() - started < 10  # 0.5 s on a free machine


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from mechsink.cli import app;"
        "CliRunner().invoke(app, ['form', '--help']);"
        "print({'torch', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("verb", [*VERBS[:-1], *STUDIES])
def test_every_verb_has_an_example(verb):
    done = mechsink(*verb.split(), "--help")
    assert done.exit_code == 0
    assert f"mechsink {verb}" in done.output.split("Example")[-1]


def test_versions():
    done = mechsink("--version")
    assert done.exit_code == 0
    assert "mechsink " in done.output
    assert "torch " in done.output


def test_models_lists_what_can_be_loaded():
    done = mechsink("models")
    assert done.exit_code == 0
    assert "smollm2" in done.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["form", "bb-cpuu"], "Did you mean 'bb-cpu'?"),
        (["form", "--text", "no-such-file.txt"], "no-such-file.txt"),
        (["form", "--from", "no-such-run"], "no-such-run"),
        (["sinks", "smollm22"], "Did you mean 'smollm2'?"),
        (["sinks", "./no-such-folder"], "no-such-folder"),
        (["sinks", "smollm2", "--text", "no-such-file.txt"], "no-such-file.txt"),
        (["sinks", "smollm2", "--out", "/proc/nowhere"], "cannot be written"),
        (["form", "--steps", "0"], "--steps"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_told_in_words_and_leaves_nothing(
    args, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = mechsink(*args)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_failure_that_is_not_the_callers_exits_with_1(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("mechsink.models.load.load_model", fail)
    done = mechsink("sinks", "smollm2", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "the disk caught fire" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError):
        raise mechsink("--debug", "sinks", "smollm2", "--out", tmp_path).exception


def test_a_fault_of_ours_shows_no_traceback_unless_asked(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("layer")

    monkeypatch.setattr("mechsink.models.load.load_model", fail)
    done = mechsink("sinks", "smollm2", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "unexpected KeyError: 'layer'" in done.stderr
    assert "Traceback" not in done.output


def test_somebody_elses_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = mechsink("sinks", "smollm2", "--out", tmp_path)
    assert done.exit_code == 2
    assert "thesis.tex" in done.stderr


@pytest.mark.matrix
def test_sinks_of_a_local_folder(tmp_path):
    model = save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text("Some words to measure on. " * 40)
    out = tmp_path / "out"
    args = ["sinks", model, "--text", tmp_path / "text.txt", "--out", out]
    for _ in range(2):  # the second run replaces the first
        done = mechsink(*args, "--length", "16")
        assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    files = {path.name for path in out.iterdir()}
    assert {"report.html", "meta.json", "table.csv", "figures"} <= files
    assert not [name for name in files if name.startswith(".new")]
    meta = json.loads((out / "meta.json").read_text())
    assert meta["settings"]["length"] == 16
    assert meta["duration_s"] > 0


@pytest.mark.matrix
def test_form_trains_resumes_and_reports(tmp_path):
    out = tmp_path / "out"
    done = mechsink("form", "bb-cpu", "--steps", "3", "--seed", "1", "--out", out)
    assert done.exit_code == 0, done.output
    report = out / "report.html"
    assert done.stdout.splitlines()[-1] == str(report)
    text = Reader(report.read_text()).text
    assert "from step 0 to step 3" in text
    assert "seed (1)" in text
    run = out / "bb-cpu-seed1-3steps"
    state = (run / "state.safetensors").stat().st_mtime_ns
    again = mechsink("form", "bb-cpu", "--steps", "3", "--seed", "1", "--out", out)
    assert again.exit_code == 0, again.output
    assert (run / "state.safetensors").stat().st_mtime_ns == state  # not trained anew
    other = mechsink("form", "--from", run, "--out", tmp_path / "other")
    assert other.exit_code == 0, other.output
    assert (tmp_path / "other" / "report.html").is_file()


@pytest.mark.matrix
def test_patch_sweeps_pairs_of_a_file(tmp_path):
    model = save_tiny(tmp_path / "model")
    pair = {"clean": "abcd", "corrupted": "abxd", "answer": "e", "wrong": "f"}
    other = {**pair, "clean": "ghij", "corrupted": "gxij"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in (pair, other)))
    out = tmp_path / "out"
    args = ["patch", model, pairs, "--out", out, "--site", "resid_pre", "--site", "z"]
    done = mechsink(*args, "--direction", "noising")
    assert done.exit_code == 0, done.output
    page = Reader((out / "report.html").read_text()).text
    assert "2 pairs of prompts" in page and "Fewer than 50 pairs" in page
    table = pd.read_csv(out / "table.csv")
    by_site = table.groupby("site")
    assert by_site.size().to_dict() == {"resid_pre": 2 * 3 * 4, "z": 2 * 3 * 4}
    # Noising the whole stream at the end of the prompt gives the corrupted run.
    last = table[(table["site"] == "resid_pre") & (table["layer"] == 0)]
    moved = last[last["effect"].abs() > 1e-3]
    assert moved["pos"].tolist() == [2, 1]  # where each pair differs
    assert moved["effect"].to_numpy() == pytest.approx(1, abs=1e-4)

    done = mechsink(*args[:3], "--out", out, "--metric", "L1H2", "--site", "mlp_out")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "table.csv")
    assert (table.loc[table["layer"] >= 1, "effect"] == 0).all()
    assert table.loc[table["layer"] == 0, "effect"].abs().max() > 1e-3


@pytest.mark.matrix
@pytest.mark.slow
def test_float64_tells_rounding_from_the_rest(tmp_path):
    model = save_tiny(tmp_path / "model")
    pairs = tmp_path / "pairs.jsonl"
    row = {"clean": "abcd", "corrupted": "abxd", "answer": "e", "wrong": "f"}
    pairs.write_text(json.dumps(row) + "\n")
    (tmp_path / "text.txt").write_text("Some words to measure on. " * 40)
    text = tmp_path / "text.txt"
    verbs = {
        "patch": ([model, pairs, "--site", "resid_pre"], "value"),
        "circuit": ([model, pairs, "--edges", "20"], "score"),
        "sinks": ([model, "--text", text, "--length", "16", "--texts", "2"], "score"),
        "heads": (
            [model, "--domain", f"a={text}", "--domain", f"b={text}", "--length", "16"],
            "difference",
        ),
    }
    for verb, (args, column) in verbs.items():
        found = {}
        for flag in ((), ("--float64",)):
            out = tmp_path / f"{verb}{len(flag)}"
            done = mechsink(verb, *args, "--out", out, *flag)
            assert done.exit_code == 0, done.output
            meta = json.loads((out / "meta.json").read_text())
            found[meta["dtype"]] = pd.read_csv(out / "table.csv")[column].to_numpy()
        single, double = found["torch.float32"], found["torch.float64"]
        off = abs(single - double)
        scale = max(abs(double).max(), 1e-3)
        assert off[~np.isnan(off)].max() < 1e-4 * scale, verb
        if verb != "heads":  # the same text twice differs by nothing
            assert off.max() > 0, verb


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--metric", "loss"], "--metric loss is none"),
        (["--direction", "up"], "--direction up. Allowed: denoising, noising"),
        (["--site", "resid"], "no site is called 'resid'"),
    ],
)
def test_patch_says_what_is_allowed(args, message, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    row = {"clean": "ab", "corrupted": "ax", "answer": "e", "wrong": "f"}
    pairs.write_text(json.dumps(row))
    model = save_tiny(tmp_path / "model")
    done = mechsink("patch", model, pairs, "--out", tmp_path / "out", *args)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def pairs_file(folder, n=2):
    """Pairs that differ in one character, each with answers of its own."""
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for i in range(n):
            start, answer, wrong = (chr(97 + (i + k) % 26) for k in (0, 5, 11))
            row = {"clean": f"{start}bcd", "corrupted": f"{start}bxd"}
            file.write(json.dumps({**row, "answer": answer, "wrong": wrong}) + "\n")
    return path


WEAK = pytest.mark.filterwarnings("ignore:.*told apart too weakly:UserWarning")


@pytest.mark.matrix
@WEAK
def test_circuit_writes_what_the_library_finds(tmp_path):
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out"
    pairs = pairs_file(tmp_path)
    args = ["circuit", model, pairs, "--out", out]
    done = mechsink(*args, "--method", "eap-ig", "--steps", "2", "-n", "30")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    files = {path.name for path in out.iterdir()}
    assert {"report.html", "meta.json", "table.csv", "points.csv", "figures"} <= files
    assert {"circuit.json", "circuit.graphml"} <= files
    loaded = load_model(str(model))
    scores = eap_ig(loaded, PromptPairs.from_jsonl(pairs), logit_diff, steps=2)
    table = pd.read_csv(out / "table.csv")
    assert table["score"].to_numpy() == pytest.approx(scores.table["score"].to_numpy())
    assert Circuit.load(out / "circuit.json").edges == top_edges(scores, 30).edges
    page = Reader((out / "report.html").read_text()).text
    assert "chosen and measured on the same 2 pairs" in page
    settings = json.loads((out / "meta.json").read_text())["settings"]
    assert settings["scores"]["steps"] == 2

    options = ["--metric", "sink:1.2", "--greedy", "--signed", "--method", "exact"]
    done = mechsink(*args, *options)
    assert done.exit_code == 0, done.output
    found = EdgeReport.load(out)
    assert (found.selection, found.sign) == ("greedy", "signed")
    assert (found.method, found.n) == ("exact_edges", 100)
    assert found.outputs == ["a1.h2<q>", "a1.h2<k>"]
    assert found.metric == "sink_attention(layer=1, head=2, position=0)"


@WEAK
@pytest.mark.matrix
@pytest.mark.parametrize("method", ["eap", "eap-ig-activations", "clean-corrupted"])
def test_circuit_of_a_ready_set(method, tmp_path):
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out"
    args = ["--set", "induction", "--prompts", "20", "--seed", "4", "--out", out]
    done = mechsink("circuit", model, *args, "--method", method)
    assert done.exit_code == 0, done.output
    found = EdgeReport.load(out)
    assert found.is_split and len(found.pairs) == 20
    assert found.meta["settings"]["prompt_set"]["seed"] == 4
    page = Reader((out / "report.html").read_text()).text
    assert "Ready prompt set induction: 20 pairs made" in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "ig"], "--method ig. Allowed: eap, eap-ig"),
        (["--method", "eap", "--steps", "3"], "--steps 3 means nothing to --method"),
        (["--metric", "loss"], "circuit: --metric loss is none"),
        (["--metric", "sink:9.9"], "layer"),
        (["--set", "ioi"], "give PAIRS.jsonl or --set, one of them"),
        (["--edges", "100000"], "n=100000 edges asked for. Allowed: 0 to"),
        (["--edges", "0"], "--edges"),
    ],
)
def test_circuit_says_what_is_allowed(args, message, tmp_path):
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out"
    done = mechsink("circuit", model, pairs_file(tmp_path), "--out", out, *args)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", " ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give PAIRS.jsonl or --set, one of them"),
        (["--set", "iou"], "--set iou. Allowed: ioi, capitals"),
        (["no-such-file.jsonl"], "no-such-file.jsonl"),
    ],
)
def test_circuit_asks_for_prompts_before_it_loads(args, message, tmp_path):
    done = mechsink("circuit", "no-such-model", *args, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", " ")


@pytest.mark.matrix
def test_af1_finds_what_was_planted(planted_sums, tmp_path):
    out = tmp_path / "out"
    model = f"toy:{planted_sums.folder}"
    done = mechsink("af1", model, "--prompts", "300", "--out", out)
    assert done.exit_code == 0, done.output
    page = Reader((out / "report.html").read_text()).text
    assert "Waits 2 layers, then peeks in 2: keeps 1.000" in page
    found = AllForOneReport.load(out)
    assert (found.wait, found.peek, found.found) == (2, [2], True)
    args = ["--template", "{A} + {B} + 3 =", "--slot", "A=0-9", "--slot", "B=1,2,5"]
    done = mechsink("af1", model, *args, "--answer", "A + B + 3", "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "meta.json").read_text())["fields"]["wait"] == 2


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--template", "{A} + {B} ="], "--template and --slot go together"),
        (["--slot", "A=1"], "--template and --slot go together"),
        (["--template", "{A}", "--slot", "A=1"], "at least two values"),
        (["--template", "{A}", "--slot", "A=0-9", "--answer", "A.x"], "no sum"),
        (["--template", "{A}", "--slot", "A=0-9", "--answer", "A +"], "no sum"),
    ],
)
def test_af1_says_what_is_allowed(args, message, tmp_path):
    model = save_tiny(tmp_path / "model")
    done = mechsink("af1", model, "--out", tmp_path / "out", *args)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
