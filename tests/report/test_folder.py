"""The output folder: claimed before the work, filled at the end, never half."""

from pathlib import Path

import pytest

from mechsink.report.folder import MARKER, output_folder


def fail_in(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), output_folder(path) as stage:
        (stage / "half.csv").write_text("1")
        1 / 0  # noqa: B018


def test_a_failure_leaves_no_trace(tmp_path: Path) -> None:
    fail_in(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    fail_in(empty)
    assert list(empty.iterdir()) == []


def test_a_failure_keeps_what_was_there_before(tmp_path: Path) -> None:
    with output_folder(tmp_path / "ours") as stage:
        (stage / "report.html").write_text("first")
    fail_in(tmp_path / "ours")
    names = {entry.name for entry in (tmp_path / "ours").iterdir()}
    assert names == {MARKER, "report.html"}


def test_only_what_we_wrote_is_replaced(tmp_path: Path) -> None:
    with output_folder(tmp_path) as stage:
        (stage / "old.csv").write_text("1")
    (tmp_path / "notes.txt").write_text("mine")
    with output_folder(tmp_path) as stage:
        (stage / "new.csv").write_text("2")
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {MARKER, "new.csv", "notes.txt"}


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.tex"), output_folder(tmp_path):
        pass
    with (
        pytest.raises(ValueError, match="is a file"),
        output_folder(tmp_path / "thesis.tex"),
    ):
        pass


def test_one_process_writes_a_folder_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        output_folder(out) as stage,
        pytest.raises(RuntimeError, match=r"--out .*another process is at work"),
        output_folder(out),
    ):
        pass
    assert not stage.exists()


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with output_folder(out) as stage:
        (stage / "report.html").write_text("first")
    (out / ".new-left").mkdir()
    with output_folder(out) as stage:
        (stage / "report.html").write_text("second")
    assert sorted(path.name for path in out.iterdir()) == [".mechsink", "report.html"]
    assert (out / "report.html").read_text() == "second"
