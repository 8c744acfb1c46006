"""The quick form of every experiment, as its command: its main claims hold."""

import pytest
from typer.testing import CliRunner

from mechsink.cli import app


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["operators", "formation", "mitigation"])
def test_quick(name, tmp_path):
    out = str(tmp_path / name)
    args = ["experiment", name, "--quick", "--out", out]
    if name in ("operators", "formation", "mitigation"):
        args += ["--workers", "1"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    page = (tmp_path / name / "README.md").read_text()
    assert f"mechsink experiment {name} --quick" in page
    assert "**no**" not in page.split("## ")[1]  # the claims
    assert list((tmp_path / name).glob("*.png"))
