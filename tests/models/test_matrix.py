"""docs/families.md says what is measured today."""

import re

import pytest

from tests.models.families import FAMILIES, MORE
from tests.models.matrix import PAGE, SEEING, page, row, vision_row

VARIES = re.compile(r"\d+e[-+]\d+|no: [^|]*")  # numbers, and words of refusals


@pytest.mark.slow
def test_the_page_of_families_is_true() -> None:
    """Nothing wrong, and nothing but numbers and the words of refusals differs."""
    rows = [row(family) for family in (*FAMILIES, *MORE)]
    text = page(rows, [vision_row(family) for family in SEEING])
    assert "**" not in text
    assert VARIES.sub("#", text) == VARIES.sub("#", PAGE.read_text())


def test_every_family_is_on_the_page() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines]
    names = [name for name in names if name != "family" and not name.startswith(":")]
    assert [n for n in names if not set(n) <= {"-"}] == [*FAMILIES, *MORE, *SEEING]
    assert "**" not in "".join(lines)
