"""--json: one object on stdout, errors included; quiet where nobody watches."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mechsink.cli import exits
from mechsink.models.from_files import HubUnreachable
from tests.cli.commands import run, tiny_inputs
from toy_tasks.storage import FolderBusy, locked


def spoken(done) -> dict:
    """The one object; nothing beside it."""
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    return json.loads(done.stdout)


@pytest.fixture
def made(tmp_path):
    return tiny_inputs(tmp_path)


@pytest.mark.matrix
def test_what_is_said_of_a_run(made, tmp_path):
    model, text, pairs = made
    out = tmp_path / "out"
    sizes = ["--length", "16", "--texts", "4"]
    done = run("sinks", model, "--text", text, *sizes, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = spoken(done)
    assert (found["verb"], found["ok"], found["exit_code"]) == ("sinks", True, 0)
    assert found["folder"] == str(out) and found["seconds"] > 0
    assert found["page"] == str(out / "report.html")
    for path in (found["page"], found["settings"], *found["tables"].values()):
        assert Path(path).is_file()
    table = pd.read_csv(found["tables"]["table"])
    best = found["numbers"]["highest_sink_score"]
    assert best["value"] == table["score"].max()
    shares = pd.read_csv(found["tables"]["rates"])["rate"]
    assert found["numbers"]["sink_rate"]["value"] == pytest.approx(shares.mean())
    assert found["numbers"]["sink_rate"]["low"] is None  # of four texts

    done = run("patch", model, pairs, "--site", "z", "--out", tmp_path / "p", "--json")
    found = spoken(done)["numbers"]
    table = pd.read_csv(tmp_path / "p/table.csv")
    means = table.groupby(["layer", "head"])["effect"].mean()
    place = found["strongest"]["z"]
    assert place["value"] == pytest.approx(means[place["layer"], place["head"]])
    assert abs(place["value"]) == pytest.approx(means.abs().max())
    assert found["pairs"] == 2


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:.*told apart too weakly:UserWarning")
def test_other_verbs_say_theirs(made, tmp_path):
    model, text, pairs = made
    out = tmp_path / "c"
    done = run("circuit", model, pairs, "--edges", "20", "--out", out, "--json")
    found = spoken(done)["numbers"]
    assert found["edges"] == pd.read_csv(out / "table.csv")["in_circuit"].sum()
    assert set(found["cpr"]) == {"value", "low", "high"}
    domains = ["--domain", f"a={text}", "--domain", f"b={text}"]
    out = tmp_path / "h"
    done = run("heads", model, *domains, "--length", "16", "--out", out, "--json")
    found = spoken(done)
    assert found["numbers"]["heads"] == 12
    assert set(found["numbers"]["mean_dormancy"]) == {"a", "b"}
    out = tmp_path / "f"
    done = run("form", "bb-cpu", "--steps", "2", "--out", out, "--json")
    found = spoken(done)
    assert found["numbers"]["steps"] == 2
    assert all("bb-cpu" not in name for name in found["tables"])


def test_models_are_listed_for_scripts_and_for_pipes():
    found = spoken(run("models", "--json"))["models"]
    assert found[0]["name"] == "smollm2" and isinstance(found[0]["ready"], bool)
    lines = run("models").stdout.splitlines()
    assert lines[0].split("\t")[0] == "smollm2"
    assert all(line.count("\t") == 3 for line in lines)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["form", "bb-cpuu"], 2, "Did you mean 'bb-cpu'?"),
        (["patch", "smollm2"], 2, "Missing argument"),
        (["patch", "smollm2", "p.jsonl", "--sit", "z"], 2, "--sit"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["--nonsense", "sinks"], 2, "--nonsense"),
        (["sinks", "some/model"], 3, "could not be fetched from the hub"),
    ],
)
def test_errors_are_objects_too(args, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mechsink.models.from_files.hub_answers", lambda: False)
    done = run(*args, "--json")
    found = spoken(done)
    assert done.exit_code == found["exit_code"] == code
    assert found["ok"] is False and message in found["error"]
    assert not list(tmp_path.iterdir())


def test_json_after_two_dashes_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("sinks", "--", "--json")
    assert done.stdout == "" and done.exit_code in (2, 3)


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong"), exits.BAD_INPUT),
        (FileNotFoundError("no such"), exits.BAD_INPUT),
        (KeyError("layer"), exits.FAILURE),
        (RuntimeError("failed on 1 of 3 prompts"), exits.FAILURE),
        (MemoryError(), exits.ENVIRONMENT),
        (OutOfMemoryError("CUDA out of memory"), exits.ENVIRONMENT),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), exits.ENVIRONMENT),
        (FULL, exits.ENVIRONMENT),
        (wrapped(OSError("save: cannot write"), FULL), exits.ENVIRONMENT),
        (wrapped(ValueError("--out cannot be written"), FULL), exits.ENVIRONMENT),
        (ImportError('pip install "mechsink[ray]"'), exits.ENVIRONMENT),
        (ConnectionError("can't be reached"), exits.ENVIRONMENT),
        (HubUnreachable("not fetched"), exits.ENVIRONMENT),
        (FolderBusy("another process"), exits.ENVIRONMENT),
        (KeyboardInterrupt(), exits.STOPPED),
    ],
)
def test_exit_codes_by_cause(error, code, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("mechsink.models.load.load_model", fail)
    out = tmp_path / "out"
    done = run("sinks", "smollm2", "--out", out)
    assert done.exit_code == code
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert not out.exists()
    found = spoken(run("sinks", "smollm2", "--out", out, "--json"))
    assert found["exit_code"] == code and found["verb"] == "sinks"
    assert found["error"]


def test_a_folder_in_use_is_the_environment(tmp_path):
    out = tmp_path / "out"
    with locked(out):
        (out / ".mechsink").touch()
        done = run("sinks", "smollm2", "--out", out)
    assert done.exit_code == exits.ENVIRONMENT
    assert "another process is at work" in done.stderr


@pytest.mark.matrix
def test_a_claim_that_fails_is_written_and_told(tmp_path, monkeypatch):
    from mechsink.experiments.study import Study, as_claims, claim

    study = Study(
        pd.DataFrame({"seed": [0], "value": [0.2]}),
        {},
        as_claims([claim("Sinks form", 0.2, above=0.3)]),
    )
    monkeypatch.setattr(
        "mechsink.experiments.regression.experiment.linear_regression",
        lambda **options: study,
    )
    out = tmp_path / "out"
    done = run("experiment", "regression", "--out", out)
    assert done.exit_code == exits.CLAIM
    assert "Sinks form: measured 0.2, wanted > 0.3" in done.stderr
    assert (out / "README.md").is_file()
    found = spoken(run("experiment", "regression", "--out", out, "--json"))
    assert (found["exit_code"], found["ok"]) == (exits.CLAIM, False)
    assert found["numbers"]["claims"][0]["holds"] is False
    assert found["numbers"]["claims"][0]["low"] is None
    assert found["folder"] == str(out)


@pytest.mark.matrix
def test_a_pipe_gets_the_path_alone(made, tmp_path):
    """No bar, no colour, no line of a library's: in a process of its own."""
    model, text, _ = made
    command = [sys.executable, "-m", "mechsink", "sinks", model, "--text", text]
    command += ["--length", "16", "--texts", "4", "--out", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out/report.html'}\n"
    assert done.stderr == ""
