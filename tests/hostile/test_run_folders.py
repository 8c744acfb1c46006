"""Folders of trained toys: damaged ones load as they were or are refused in words."""

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save

import mechsink as ms
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from toy_tasks import PRESETS, BigramBackcopy, ToyConfig, load_run, train
from toy_tasks.storage import DIGEST, FORMAT

TEXT = "the cat sat on the mat and the rat ran at the cat " * 9
STEP = "checkpoints/step-000002.safetensors"
FILES = ("config.json", "log.jsonl", "state.safetensors", STEP)


def task() -> BigramBackcopy:
    return BigramBackcopy.from_text(TEXT, n_triggers=1, min_count=5)


def preset():
    model = ToyConfig(d_model=4, d_head=4, d_mlp=4, n_ctx=6, prefix=1)
    return replace(PRESETS["bb-cpu"], model=model, steps=2, batch=2, log_every=1)


@functools.cache
def trained() -> dict[str, bytes]:
    """Files of a finished run, by their path in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        train(task(), preset(), folder)
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def copy_to(folder: str | Path, changed: dict[str, bytes | None]) -> Path:
    for name, data in {**trained(), **changed}.items():
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        if data is not None:
            path.write_bytes(data)
    return Path(folder)


def numbers(folder: Path) -> tuple[torch.Tensor, list[object]]:
    """What a run is asked for: its model's logits, and its losses."""
    run = load_run(folder)
    tokens = torch.arange(6)[None]
    model = ms.load_model(f"toy:{folder}")
    assert torch.equal(model.run(tokens).logits, run.model()(tokens))
    return model.run(tokens).logits, [run.history, run.steps, run.seed]


@functools.cache
def good() -> tuple[torch.Tensor, list[object]]:
    with tempfile.TemporaryDirectory() as folder:
        return numbers(copy_to(folder, {}))


def damaged(data: bytes, what: str, place: int, byte: int) -> bytes | None:
    at = place % max(1, len(data))
    if what == "flip":
        return data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :]
    if what == "gone":
        return None
    return data[:at] if what == "cut" else data + bytes([byte])


damages = {
    "name": st.sampled_from(FILES),
    "what": st.sampled_from(["flip", "flip", "cut", "add", "gone"]),
    "place": st.integers(0, 10**6),
    "byte": st.integers(1, 255),
}


@hostile(10, 1200, **damages)
def test_a_damaged_run_loads_as_it_was_or_is_refused(name, what, place, byte):
    logits, facts = good()
    with tempfile.TemporaryDirectory() as folder:
        data = damaged(trained()[name], what, place, byte)
        path = copy_to(folder, {name: data})
        found = tried(numbers, path)
        if is_refused(found):
            assert str(path) in str(found)
            return
        if (name, what) == (STEP, "gone"):  # then the last one there is the last
            assert load_run(path).steps == facts[1][:-1]  # type: ignore[index]
            return
        assert torch.equal(found[0], logits)
        assert found[1] == facts


@hostile(
    5,
    200,
    **{**damages, "name": st.sampled_from(["state.safetensors", "config.json"])},
)
def test_training_goes_on_from_a_good_state_or_refuses(name, what, place, byte):
    logits, _ = good()
    with tempfile.TemporaryDirectory() as folder:
        path = copy_to(folder, {name: damaged(trained()[name], what, place, byte)})
        found = tried(lambda: train(task(), preset(), path))
        if not is_refused(found):
            assert torch.equal(numbers(path)[0], logits)


@hostile(10, 300, data=st.binary(max_size=64), name=st.sampled_from(FILES))
def test_any_bytes_in_the_place_of_a_file_are_refused(data, name):
    with tempfile.TemporaryDirectory() as folder:
        path = copy_to(folder, {name: data})
        found = tried(numbers, path)
        assert is_refused(found) or name == "state.safetensors" or not data.strip()


def test_a_run_from_before_there_were_checksums_loads(tmp_path):
    tensors = load(trained()[STEP])
    copy_to(tmp_path, {})
    run = load_run(tmp_path).id
    old = save(tensors, metadata={FORMAT: json.dumps({"run": run, "step": 2})})
    copy_to(tmp_path, {STEP: old})
    assert torch.equal(numbers(tmp_path)[0], good()[0])


@pytest.mark.parametrize("what", ["shape", "name", "more", "type", "step"])
def test_other_tensors_under_the_same_name_are_refused(tmp_path, what):
    copy_to(tmp_path, {})
    tensors = load_file(tmp_path / STEP)
    facts = {"run": load_run(tmp_path).id, "step": 2}
    name = next(name for name in tensors if tensors[name].ndim == 2)
    if what == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif what == "name":
        tensors["another"] = tensors.pop(name)
    elif what == "more":
        tensors["another"] = torch.zeros(1)
    elif what == "type":
        tensors[name] = tensors[name].to(torch.int64)
    else:
        facts[DIGEST] = "0" * 64
    data = save(tensors, metadata={FORMAT: json.dumps(facts)})
    copy_to(tmp_path, {STEP: data})
    with pytest.raises(ValueError, match=r"step-000002.safetensors (does not|is dam)"):
        numbers(tmp_path)
