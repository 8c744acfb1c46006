"""The quick form of every experiment, as its command: its main claims hold."""

import pytest
from typer.testing import CliRunner

from mechsink.cli import app

ONE = ["--workers", "1"]  # the tests' own workers fill the machine


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("operators", ONE),
        ("formation", ONE),
        ("mitigation", ONE),
        ("emergence", ONE),
        ("emergence", ["--bed", "text", *ONE]),
        ("dynamics", []),
        ("regression", []),
        pytest.param("streaming", [], marks=pytest.mark.pretrained),
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
