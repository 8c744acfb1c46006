"""Output folders: foreign ones are left alone, failures leave nothing."""

import pytest

from mechsink.report.folder import output_folder


def write(out, text="new", name="report.html"):
    with output_folder(out) as stage:
        (stage / name).write_text(text)


def test_a_run_replaces_its_own_files_and_keeps_all_else(tmp_path):
    out = tmp_path / "out"
    write(out, name="old.csv")
    (out / "notes.txt").write_text("mine")
    (out / "bb-cpu-seed0").mkdir()
    write(out)
    names = {path.name for path in out.iterdir()}
    assert names == {".mechsink", "report.html", "notes.txt", "bb-cpu-seed0"}


def test_a_failed_run_leaves_the_old_report(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(RuntimeError), output_folder(out) as stage:
        (stage / "report.html").write_text("half")
        raise RuntimeError
    assert (out / "report.html").read_text() == "old"
    assert {path.name for path in out.iterdir()} == {".mechsink", "report.html"}


def test_a_failed_first_run_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), output_folder(tmp_path / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_and_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files .*\(thesis.tex\)"):
        write(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        write(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work():
    with pytest.raises(ValueError, match="cannot be written"):  # not even by root
        write("/proc/mechsink-out")
