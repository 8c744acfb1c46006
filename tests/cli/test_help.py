"""Help: examples that end it and parse, exit codes, shell completion."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from mechsink.cli import app, choices
from mechsink.cli.exits import CODES
from tests.cli.commands import run, verbs

VERBS = verbs()
PAGE = Path(__file__).parents[2] / "docs/command-line.md"


def examples(command) -> list[str]:
    lines = command.epilog.split("\n\n")
    assert lines[0] in ("Examples:", "Example:")
    return [line.removeprefix("[bold]").removesuffix("[/bold]") for line in lines[1:]]


@pytest.mark.parametrize("name", VERBS)
def test_help_ends_with_examples_that_are_taken(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = examples(VERBS[name])
    assert 2 <= len(given) <= 3
    shown = [line.strip() for line in run(*name.split(), "--help").output.splitlines()]
    assert [line for line in shown if line][-len(given) :] == given
    for example in given:
        program, *words = shlex.split(example)
        assert program == "mechsink" and words[: len(name.split())] == name.split()
        root = typer.main.get_command(app)
        with root.make_context("mechsink", words[:1]) as context:
            rest = words[len(name.split()) :]
            made = VERBS[name].make_context(name, rest, parent=context)
        if name != "replay":  # which hands what it does not know to the verb
            assert made.args == []


def test_a_wrong_option_is_not_taken():
    root = typer.main.get_command(app)
    context = root.make_context("mechsink", ["sinks"])
    with pytest.raises(Exception, match="--txt"):
        VERBS["sinks"].make_context("sinks", ["m", "--txt", "a"], parent=context)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_json(name):
    assert "--json" in run(*name.split(), "--help").output


def test_exit_codes_stand_in_the_help_and_the_page(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("--help").output
    told = PAGE.read_text(encoding="utf-8")
    for code, meaning in CODES.items():
        assert f"{code}: {meaning}" in shown
        assert f"| {code} | {meaning}" in told


def completed(*words: str) -> list[str]:
    """What bash is offered after these words, the last one being typed."""
    done = subprocess.run(
        [sys.executable, "-c", "from mechsink.cli import main; main()"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_MECHSINK_COMPLETE": "complete_bash",
            "COMP_WORDS": shlex.join(["mechsink", *words]) if words[-1] else
            shlex.join(["mechsink", *words[:-1]]) + " ",
            "COMP_CWORD": str(len(words)),
        },
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.matrix
def test_the_shell_completes_verbs_and_words(tmp_path, monkeypatch):
    assert completed("ci") == ["circuit"]
    assert completed("experiment", "em") == ["emergence"]
    assert completed("form", "bb") == list(choices.PRESETS)
    assert completed("circuit", "smollm2", "--set", "in") == ["induction"]
    assert completed("circuit", "smollm2", "--method", "eap-ig-") == [
        "eap-ig-activations"
    ]
    assert completed("patch", "smo") == ["smollm2"]
    assert completed("patch", "smollm2", "p.jsonl", "--me") == ["--metric"]
    script = subprocess.run(
        [sys.executable, "-m", "mechsink", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    ).stdout
    assert "complete -o default -F" in script


def test_models_of_this_folder_are_offered(tmp_path, monkeypatch):
    (tmp_path / "runs/bb").mkdir(parents=True)
    (tmp_path / "runs/bb/config.json").write_text('{"format": "toy_tasks run 1"}')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    (tmp_path / "mine/model.safetensors").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("[")
    monkeypatch.chdir(tmp_path)
    assert choices.model_names("") == ["smollm2", "./mine", "toy:runs/bb"]
    assert choices.model_names("toy:") == ["toy:runs/bb"]


def test_the_words_are_the_librarys_own():
    from mechsink.cli.words import by_method, by_metric
    from mechsink.experiments.emergence.beds import BEDS
    from mechsink.experiments.emergence.settings import knobs
    from mechsink.experiments.formation.study import SETTINGS
    from mechsink.experiments.mitigation import REMEDIES
    from mechsink.models.from_files import EMBEDDED
    from mechsink.prompt_sets import ALL
    from mechsink.sites import AXES
    from toy_tasks import PRESETS
    from toy_tasks.operators import MAIN

    own = {
        choices.MODELS: EMBEDDED,
        choices.PRESETS: [name for name in PRESETS if name.startswith("bb")],
        choices.SETS: ALL,
        choices.SITES: AXES,
        choices.OPERATORS: MAIN,
        choices.REMEDIES: REMEDIES,
        choices.KNOBS: knobs(BEDS["bigram"]),
        choices.BEDS: BEDS,
        choices.SETTINGS: SETTINGS,
    }
    for words, found in own.items():
        assert list(words) == list(found)
    for name in choices.METHODS:
        by_method(name, None)
    for name in choices.METRICS:
        by_metric(name + "0.1" * name.endswith(":"), "patch")
