"""The command line: names are shown as they are, and are no markup, option or code."""

import io
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from mechsink import progress
from mechsink.cli import app
from mechsink.visible import visible
from tests.hostile.cases import hostile
from tests.hostile.pages import check_page
from tests.hostile.test_run_folders import copy_to
from tests.hostile.texts import NASTY, any_texts

pytestmark = pytest.mark.matrix  # each call reads or trains a little

FILE_NAMES = (
    "[red]a[blink]",
    "[bold",
    "a b;c",
    "a'b\"c",
    "$(touch ran)",
    "`touch ran`",
    "a|b&c>d",
    "-a",
    "{x}",
    "%s",
    "\x1b[31mred",
    "a\nb",
    "\u202etxt",
    "é😀",
    "x" * 200,
    os.fsdecode(b"\xff\xfe"),
    "<img src=x onerror=alert(1)>",
)
names = st.sampled_from(FILE_NAMES)


def mechsink(*args: str):
    return CliRunner().invoke(app, [*args], env={"COLUMNS": "10000", "NO_COLOR": "1"})


def check_told(done) -> str:
    """An error in words: no traceback, no control character."""
    assert done.exit_code in (1, 2, 3), done.output[-500:]
    assert isinstance(done.exception, SystemExit | None)
    assert "Traceback" not in done.output
    assert "unexpected" not in done.output, done.output[-500:]
    assert "\x1b" not in done.output
    return done.output


@hostile(
    10,
    400,
    [{"name": name} for name in (*FILE_NAMES, "\x00", "", "toy:", "toy:[/]", "..")],
    name=any_texts | names | st.builds("toy:{}".format, names),
)
def test_any_model_name_is_told_as_it_is(name):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pair = dict.fromkeys(("clean", "corrupted", "answer", "wrong"), "a")
        (place / "pairs.jsonl").write_text(json.dumps(pair))
        args = [
            "patch",
            "--out",
            str(place / "out"),
            "--",
            name,
            folder + "/pairs.jsonl",
        ]
        said = check_told(mechsink(*args))
        assert not (place / "out").exists()
        shown = visible(name)
        if len(name) < 60 and "\n" not in shown and "\t" not in shown:
            told = (shown, repr(name)[1:-1], shown.removeprefix("toy:"))
            assert any(word in said for word in told), said


@hostile(
    5,
    300,
    option=st.sampled_from(["--metric", "--direction", "--site"]),
    word=any_texts,
)
def test_any_word_for_an_option_is_told_as_it_is(option, word):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a b;'.jsonl"
        pair = dict.fromkeys(("clean", "corrupted", "answer", "wrong"), "a")
        path.write_text(json.dumps(pair))
        args = ["patch", "./nowhere", str(path), f"{option}={word}"]
        check_told(mechsink(*args, "--out", f"{folder}/out"))


@hostile(5, 200, name=names, data=st.binary(max_size=20))
def test_any_file_name_of_pairs_is_told_as_it_is(name, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(b"{" + data)
        args = ["circuit", "--out", f"{folder}/out", "--", "./nowhere", str(path)]
        said = check_told(mechsink(*args))
        assert "line 1 of" in said
        if "\n" not in name:
            assert visible(name) in said
        assert sorted(p.name for p in Path(folder).iterdir()) == [name]


@hostile(3, 60, found=st.lists(names, min_size=1, max_size=4, unique=True))
def test_models_lists_folders_of_any_name(found):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in found:
            copy_to_new(Path(folder) / name)
        patch.chdir(folder)
        done = mechsink("models")
        assert done.exit_code == 0, done.output
        for name in found:
            if len(name) < 60 and "\n" not in name:
                assert visible(name) in done.output


def copy_to_new(folder: Path) -> Path:
    folder.mkdir()
    return copy_to(folder, {})


class Terminal(io.StringIO):
    """Where rich writes as on a screen."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@hostile(
    10,
    300,
    [{"text": text} for text in (*NASTY, *FILE_NAMES, "{task}", "{", "[/]")],
    text=any_texts,
)
def test_progress_shows_any_name(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", screen := Terminal())
        patch.setenv("COLUMNS", "400")
        patch.setenv("NO_COLOR", "1")
        with progress.bar(text, 2, show=True) as advance:
            advance(2)
        with progress.waiting(text):
            pass
    screen.getvalue().encode()


TEXT = "the cat sat on the mat and the rat ran"


@pytest.mark.matrix
@pytest.mark.parametrize("name", [FILE_NAMES[i] for i in (0, 2, 4, 9, 13, -2, -1)])
@pytest.mark.some_cases(2)
def test_a_report_goes_to_a_folder_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy = copy_to_new(tmp_path / name)
    args = ("sinks", f"toy:{toy}", "--texts", "2", "--length", "6")
    done = mechsink(*args, "--out", f"{tmp_path}/{name}.out")
    assert done.exit_code == 0, done.output
    assert visible(f"{name}.out/report.html") in done.output
    page = tmp_path / f"{name}.out" / "report.html"
    check_page(page.read_text())
    meta = json.loads((page.parent / "meta.json").read_text())
    assert re.search(re.escape(name), meta["model"])
    assert not list(tmp_path.rglob("ran"))
