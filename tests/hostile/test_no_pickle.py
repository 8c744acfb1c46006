"""No pickle is read, and no code that came with a model is run."""

import contextlib
import json
import pickle
import re
from pathlib import Path
from unittest import mock

import pytest
import torch

import mechsink as ms
from mechsink.circuits.graph import Circuit
from tests.circuits.made import SHAPES
from tests.hostile.test_results import Two, example
from tests.hostile.test_run_folders import copy_to, numbers
from tests.report.tiny_model import save_tiny

ROOT = Path(__file__).parents[2]
UNSAFE = re.compile(
    r"^\s*(import|from)\s+(pickle|cPickle|dill|joblib|cloudpickle|shelve|marshal)\b"
    r"|torch\.load\(|read_pickle|to_pickle|allow_pickle|trust_remote_code=True\s*[,)]"
    r"|\beval\(|\bexec\(|os\.system\(|shell=True",
    re.M,
)
BETWEEN = "mechsink/engines/"
"""Where processes of one call send each other work: through pipes, never from files."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_our_source_has_no_pickle_no_eval_and_no_shell():
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for room in ("mechsink", "toy_tasks")
        for path in (ROOT / room).rglob("*.py")
        for match in UNSAFE.finditer(path.read_text().replace(".eval()", ""))
    ]
    inside = [line for line in found if line.startswith(BETWEEN)]
    assert {line.split()[-1] for line in inside} <= {"cloudpickle"}
    assert [line for line in found if line not in inside] == []


@contextlib.contextmanager
def no_pickle():
    """Let whatever opens a pickle fail."""

    def refuse(*args, **options):
        raise AssertionError("a pickle was opened")

    load = torch.load

    def weights_only(*args, **options):
        if options.get("weights_only") is not True:
            refuse()
        return load(*args, **options)

    with (
        mock.patch("pickle.load", refuse),
        mock.patch("pickle.loads", refuse),
        mock.patch("pickle.Unpickler", refuse),
        mock.patch("torch.load", weights_only),
    ):
        yield


def test_the_guard_would_tell(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt")
    with no_pickle(), pytest.raises(AssertionError, match="a pickle was opened"):
        torch.load(tmp_path / "a.pt", weights_only=False)
    with no_pickle(), pytest.raises(AssertionError, match="a pickle was opened"):
        pickle.loads(pickle.dumps(1))


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")  # of the loaders, about what they will do once
def test_runs_results_circuits_and_models_load_without_pickle(tmp_path, folder):
    (tmp_path / "run").mkdir()
    copy_to(tmp_path / "run", {})
    example(tmp_path / "result")
    Circuit.full(SHAPES["plain"]).save(tmp_path / "circuit.graphml")
    with no_pickle():
        numbers(tmp_path / "run")
        Two.load(tmp_path / "result")
        Circuit.load(tmp_path / "circuit.graphml")
        model = ms.load_model(folder, device="cpu")
        model.run(model.to_tokens("abc"))


@pytest.mark.parametrize("name", ["step-000002.pt", "step-000002.bin"])
def test_a_pickle_in_a_run_folder_is_never_looked_at(tmp_path, name):
    copy_to(tmp_path, {f"checkpoints/{name}": b"\x80\x04cos\nsystem\n."})
    with no_pickle():
        numbers(tmp_path)


def with_code(folder: Path, target: Path, model_type: str) -> Path:
    """A model folder whose config asks for code that leaves a mark."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    mark = target / "ran"
    (target / "own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((target / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.OwnModel",
        },
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.matrix
def test_code_in_a_model_folder_is_refused_by_name_and_not_run(folder, tmp_path):
    own = with_code(folder, tmp_path / "own", "own")
    with pytest.raises(OSError, match="trust_remote_code"):
        ms.load_model(own, device="cpu")
    assert not (own / "ran").exists()


@pytest.mark.matrix
def test_code_beside_a_known_family_is_not_run(folder, tmp_path):
    own = with_code(folder, tmp_path / "own", "llama")
    model = ms.load_model(own, device="cpu")
    assert model.info["architecture"] == "LlamaForCausalLM"
    assert not (own / "ran").exists()
