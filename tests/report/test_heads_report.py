"""Active and dormant heads as a page, and texts by domain from files."""

import pytest
from typer.testing import CliRunner

from mechsink.cli import app
from mechsink.report.domains import default_domains, read_domains
from mechsink.report.heads import HeadsReport
from mechsink.report.texts import PER_TOKEN
from mechsink.sinks.dormant.result import ActiveDormant
from tests.report.test_html import Reader
from tests.report.tiny_model import save_tiny


def write(folder, texts):
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return folder


def test_a_folder_has_a_document_a_file(tmp_path):
    long = "x" * (PER_TOKEN * 4)
    one = write(tmp_path / "one", [long + "tail", "too short", long])
    (one / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (one / ".hidden").write_text(long)
    words = "some words in one file, " * 20
    (tmp_path / "two.txt").write_text(words)
    given = [f"one={one}", f"two={tmp_path / 'two.txt'}"]
    found, notes = read_domains(given, 4, 50)
    assert found["one"] == [long, long]
    assert len(found["two"]) > 10 and "".join(found["two"]) in words
    assert notes == [
        "two: two.txt was cut into pieces. Pieces of one document are more alike than "
        "documents, so intervals are too narrow: give a folder with one file a "
        "document."
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["prose"], "--domain prose is no NAME=PATH"),
        (["a=nowhere"], "there is no nowhere"),
        (["a={here}"], "only one domain, a"),
        (["a={here}", "b={empty}"], "domain b has 0 text"),
    ],
)
def test_domains_that_cannot_be_compared(given, message, tmp_path):
    here = write(tmp_path / "here", ["x" * 100] * 2)
    empty = write(tmp_path / "empty", ["short", "also"])
    with pytest.raises(ValueError, match=message):
        read_domains([g.format(here=here, empty=empty) for g in given], 8, 9)


def test_default_domains_are_separate_documents():
    found = default_domains(20, 64)
    assert {name: len(texts) for name, texts in found.items()} == {
        "prose": 20,
        "code": 20,
    }
    for texts in found.values():
        assert len({text[:60] for text in texts}) == 20
        assert {len(text) for text in texts} == {PER_TOKEN * 64}
    assert all(text.startswith(("class ", "def ")) for text in found["code"])


@pytest.mark.matrix
def test_heads_from_the_command_line(tmp_path):
    model = save_tiny(tmp_path / "model")
    few = write(tmp_path / "few", [f"<script>{n} aaaa bbbb " * 9 for n in range(5)])
    other = write(tmp_path / "other", [f"{n} the cat sat down " * 9 for n in range(6)])
    out = tmp_path / "out"
    args = ["heads", str(model), "--domain", f"few={few}", "--domain", f"other={other}"]
    args += ["--length", "12", "--confirm", "2", "--out", str(out)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "<script>0" not in page
    text = Reader(page).text
    assert "Texts: 5 of few, 6 of other; 12 tokens of each." in text
    assert "Fewer than 50 texts a domain (few 5, other 6)" in text
    report = HeadsReport.load(out)
    assert len(report.table) == 12 and list(report.table)[2:4] == ["few", "other"]
    assert isinstance(report, ActiveDormant) and report.domains == ["few", "other"]
