"""Every Python block of README.md and docs/ runs, in the order of its page."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, Running, blocks, name_of

FIRST = {"docs/start.md"}  # run by `make test`, the others by `make test-all`
QUICK = {"docs/operators.md", "docs/concepts/sites.md"}
MOST_SKIPPED = 5


def cases() -> list[Any]:
    """Pages with Python; CONTRIBUTING.md has tests of its own."""
    made = []
    for page in PAGES:
        name = name_of(page)
        if name == "CONTRIBUTING.md" or not any(
            block.language == "python" for block in blocks(page)
        ):
            continue
        early = [pytest.mark.matrix] if name in QUICK else [pytest.mark.slow]
        marks = [pytest.mark.matrix, pytest.mark.pretrained] if name in FIRST else early
        made.append(pytest.param(page, id=name, marks=marks))
    return made


@pytest.mark.parametrize("page", cases())
@pytest.mark.timeout(1800)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    ran = 0
    with Running(page) as running:
        for block in blocks(page):
            if block.language == "python" and not block.skipped:
                running.run(block.code, block.line)
                ran += 1
    plt.close("all")
    # A page whose every block is skipped says so: nothing of it is tested.
    assert ran or name_of(page) == "docs/where-models-run.md"


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    left_out = [b for page in PAGES for b in blocks(page) if b.skipped]
    assert all(len(block.skipped) > 10 for block in left_out)
    assert len(left_out) <= MOST_SKIPPED, [block.where for block in left_out]


def test_every_block_names_a_language_that_is_looked_after() -> None:
    known = {"python", "sh", "json", "toml", "yaml", ""}
    odd = [b.where for p in PAGES for b in blocks(p) if b.language not in known]
    assert not odd


def test_an_error_names_the_page_and_the_line(tmp_path: Path) -> None:
    page = ROOT / "docs" / "start.md"
    with Running(page) as running, pytest.raises(ZeroDivisionError) as error:
        running.run("x = 1\n1 / 0\n", line=7)
    last = error.traceback[-1]
    assert (str(last.path).split("/")[-1], last.lineno + 1) == ("start.md:7", 8)
