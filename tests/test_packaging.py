"""Wheel and sdist: built, installed where nothing of ours is, and used."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("mechsink", "toy_tasks", "pyproject.toml", "README.md", "LICENSE")
SMOKE = """
import mechsink as ms
import torch
from toy_tasks import ToyConfig, ToyTransformer

scores = ms.sink_scores(ToyTransformer(ToyConfig(d_vocab=9)), torch.tensor([[0, 1, 2]]))
assert 0 <= scores.table["score"].min() <= scores.table["score"].max() <= 1
assert len(ms.__all__) > 200
print(ms.__file__)
"""


def call(*command: object, **options: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was made from it."""
    pytest.importorskip("build")
    source, dist = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    for name in PARTS:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, source / name)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source)
    return dist


@pytest.mark.slow
def test_both_hold_all_that_is_needed(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist()}
    with tarfile.open(sdist) as file:
        packed = {name.split("/", 1)[-1] for name in file.getnames()}
    for package in ("mechsink", "toy_tasks"):
        needed = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert needed <= inside
        assert needed <= packed
        assert f"{package}/py.typed" in needed
    assert "mechsink/__init__.pyi" in inside
    assert any(name.startswith("mechsink/report/templates/") for name in inside)
    assert not any(name.startswith("tests/") for name in inside)
    assert "LICENSE" in packed


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "env"
    call(sys.executable, "-m", "venv", home)
    folder = "Scripts" if os.name == "nt" else "bin"
    python, mechsink = home / folder / "python", home / folder / "mechsink"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    # The large packages are this environment's; .pth files among them are not read,
    # so an editable mechsink there stays unseen.
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    shared = sysconfig.get_path("purelib")
    (Path(site.strip()) / "shared.pth").write_text(f"{shared}\n")
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    there = {"cwd": tmp_path, "env": outside}
    used = call(python, "-W", "error", "-c", SMOKE, **there)
    assert Path(used.strip()).is_relative_to(home)
    assert "sinks" in call(mechsink, "--help", **there)
    assert "mechsink 0." in call(mechsink, "--version", **there)
    done = call(mechsink, "form", "bb-cpu", "--steps", "2", "--out", "out", **there)
    assert Path(done.strip()) == Path("out/report.html")  # templates came along
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
