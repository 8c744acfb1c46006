"""Options from a TOML file: saved with the results, read back, replayed."""

import json
import tomllib
from pathlib import Path

import pandas as pd
import pytest

import mechsink.cli.verbs as verbs
from mechsink.cli import settings
from mechsink.cli.verbs import Outcome
from tests.cli.commands import run, tiny_inputs
from tests.cli.commands import verbs as every_verb

ALL = every_verb()


@pytest.fixture
def called(monkeypatch):
    """What a verb's function was called with, in place of its work."""
    calls: list[dict] = []

    def record(context, function, options):
        context.meta[verbs.VERB] = verbs.name_of(context)
        kept = {k: v for k, v in options.items() if k not in ("as_json", "config")}
        calls.append(kept)
        out = kept.get("out", Path("out"))
        out.mkdir(parents=True, exist_ok=True)
        text = settings.written(context, context.meta[verbs.VERB], out)
        (out / settings.FILE).write_text(text)
        return Outcome()

    monkeypatch.setattr(verbs, "_run", record)
    return calls


EXAMPLES = {
    "sinks": ["smollm2", "--text", "a.txt", "--text", "b c.txt", "--eps", "0.25"],
    "heads": ["smollm2", "--domain", "a=x.txt", "--domain", "b=../y", "--float64"],
    "patch": ["toy:runs/bb", "pairs.jsonl", "--site", "z", "--skip-bad"],
    "circuit": ["./model", "--set", "ioi", "--steps", "7", "--greedy", "--seed", "2"],
    "af1": ["smollm2", "--template", "{A} = \"q\"\n", "--slot", "A=1,2"],
    "form": ["bb3-cpu", "--text", "notes.txt", "--seed", "3"],
    "demo": ["--model", "./model", "--steps", "4"],
    "experiment operators": ["--operator", "gate", "--seeds", "2", "--quick"],
    "experiment streaming": ["smollm2", "--text", "book.txt", "--cache", "64"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_saved_file_gives_the_same_options(name, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "runs/bb", "deep/er"):
        Path(folder).mkdir(parents=True)
    args = [*name.split(), *EXAMPLES[name]]
    assert run(*args, "--out", "deep/out").exit_code == 0
    text = Path("deep/out/run.toml").read_text()
    found = tomllib.loads(text)
    assert found["verb"] == name and found["out"] == "."
    told = {*found, *(line[2:].split(":")[0] for line in text.split("\n") if line)}
    assert {*settings.keys_of(ALL[name])} <= told  # complete, what is unset included
    assert str(tmp_path) not in text  # it may move with what it names
    monkeypatch.chdir("deep/er")  # wherever it is called from
    saved = "../out/run.toml"
    assert run(*name.split(), "--config", saved).exit_code == 0
    assert run("replay", saved, "--out", tmp_path / "again").exit_code == 0
    first, second, third = [
        {key: absolute(value, tmp_path / place) for key, value in call.items()}
        for call, place in zip(called, ("", "deep/er", "deep/er"), strict=True)
    ]
    assert second == first
    assert third == {**first, "out": str(tmp_path / "again")}


def absolute(value, base: Path):
    """Whatever may be a path, as one."""
    if isinstance(value, list):
        return [absolute(item, base) for item in value]
    if isinstance(value, Path):
        return str((base / value).resolve())
    if isinstance(value, str) and value[:2] in ("./", "..", "to", "a=", "b=", "/t"):
        kind = value[: max(value.find(":"), value.find("=")) + 1]
        return kind + str((base / value.removeprefix(kind)).resolve())
    return value


def test_flags_win_over_the_file(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(
        'model = "smollm2"\nlength = 32\neps = 0.5\nfloat64 = true\ntext = "a.txt"\n'
    )
    assert run("sinks", "--config", "run.toml").exit_code == 0
    args = ["smollm2", "--length", "8", "--no-float64", "--text", "b.txt"]
    assert run("sinks", *args, "--config", "run.toml").exit_code == 0
    first, second = called
    assert (first["length"], first["eps"], first["float64"]) == (32, 0.5, True)
    assert first["text"] == [Path("a.txt")]
    assert (second["length"], second["eps"], second["float64"]) == (8, 0.5, False)
    assert second["text"] == [Path("b.txt")]


def test_dashes_and_underscores_are_one(called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("skip-bad", "skip_bad"):
        Path("run.toml").write_text(f'model = "m"\npairs = "p"\n{key} = true\n')
        assert run("patch", "--config", "run.toml").exit_code == 0
    assert [call["skip_bad"] for call in called] == [True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lenght = 3", "'lenght' is no option of `mechsink sinks`. Did you mean 'len"),
        ("help = true", "'help' is no option"),
        ('length = "many"', "--length"),
        ("length = 1", "--length"),
        ("length = [3, 4]", "length = [3, 4]. Allowed: a text or number"),
        ("length = true", "length = True. Allowed: a text or number"),
        ("float64 = 1", "float64 = 1. Allowed: true or false"),
        ("text = [[1]]", "Allowed: a list, each a text or number"),
        ("[sinks]\nlength = 3", "'sinks' is no option"),
        ('verb = "patch"', "is of `mechsink patch`, and this is `mechsink sinks`"),
        ("length = ", "is no TOML file"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_advice(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    if text is not None:
        Path("run.toml").write_text(text)
    done = run("sinks", "smollm2", "--config", "run.toml", "--json")
    assert done.exit_code == 2
    assert message in json.loads(done.stdout)["error"]
    assert not Path("sinks").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("length = 3", "names no verb"),
        ('verb = "sing"', "no verb 'sing'"),
        ('verb = "replay"', "no verb 'replay'"),
        ('verb = "experiment"', "no verb 'experiment'"),
        ('verb = "sinks"\nlenght = 3', "Did you mean 'length'?"),
    ],
)
def test_what_cannot_be_replayed_is_told(text, message, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    done = run("replay", path, "--json")
    assert done.exit_code == 2, done.output
    assert message in json.loads(done.stdout.splitlines()[-1])["error"]


def same_tables(one: Path, other: Path) -> None:
    names = {path.name for path in one.glob("*.csv")}
    assert "table.csv" in names
    assert names == {path.name for path in other.glob("*.csv")}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.matrix
def test_a_sweep_is_replayed_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_inputs(tmp_path)
    args = ["./model", "pairs.jsonl", "--site", "z", "--direction", "noising"]
    done = run("patch", *args, "--out", "results/one")
    assert done.exit_code == 0, done.output
    done = run("replay", "results/one/run.toml")
    assert done.exit_code == 0, done.output
    assert "every table is as in" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("one-replayed/report.html")
    same_tables(tmp_path / "results/one", tmp_path / "results/one-replayed")
    # Another value on the way is seen in the tables.
    done = run("replay", "results/one/run.toml", "--direction", "denoising", "--json")
    found = json.loads(done.stdout)
    assert "table" in found["changed_tables"]
    assert found["replay_of"] == str(tmp_path / "results/one")


@pytest.mark.matrix
def test_a_training_is_replayed_from_the_start(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    done = run("form", "bb-cpu", "--steps", "3", "--seed", "5", "--out", one)
    assert done.exit_code == 0, done.output
    done = run("replay", one / "run.toml", "--out", other, "--json")
    assert json.loads(done.stdout)["changed_tables"] == []
    same_tables(one, other)
    assert pd.read_csv(other / "table.csv")["step"].max() == 3
    assert (other / "bb-cpu-seed5-3steps").is_dir()  # trained anew
    own = (one / "run.toml").read_text().splitlines()
    assert own == (other / "run.toml").read_text().splitlines()
