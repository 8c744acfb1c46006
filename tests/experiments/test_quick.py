"""The quick form of every experiment, as its command: its main claims hold.

One runs in `make test`, the others in `make test-all`.
"""

import pytest
from typer.testing import CliRunner

from mechsink.cli import app

ONE = ["--workers", "1"]  # the tests' own workers fill the machine


def _slow(name: str, *options: str):
    return pytest.param(name, [*options], marks=pytest.mark.slow)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("formation", ONE),
        _slow("operators", *ONE),
        _slow("mitigation", *ONE),
        _slow("emergence", *ONE),
        _slow("emergence", "--bed", "text", *ONE),
        _slow("dynamics"),
        _slow("regression"),
        _slow("streaming"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:2]),
)
def test_quick(name, options, tmp_path):
    folder = tmp_path / name
    args = ["experiment", name, "--quick", "--out", str(folder), *options]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    page = (folder / "README.md").read_text()
    assert f"mechsink experiment {name}" in page and "--quick" in page
    assert "**no**" not in page.split("\n## ")[1]  # the claims
    assert list(folder.glob("*.png"))
