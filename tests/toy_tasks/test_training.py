"""Training: resume bit for bit, refuse what is not this run, leave no half."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toy_tasks import PRESETS, Preset, load_run, train
from toy_tasks.presets import log_spaced
from toy_tasks.storage import write_tensors


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on the number of threads, so parent and children agree on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_trains_and_loads_back(abc, tiny, tmp_path):
    run = train(abc, tiny, tmp_path / "run")
    assert run.steps == tiny.checkpoint_steps() == [0, 1, 3, 8, 22, 60]
    assert run.history[-1]["step"] == 60
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 0.3
    again = load_run(run.folder)
    model = again.model()
    assert not model.training and model.config == run.config
    assert again.task.to_json() == abc.to_json() and again.preset == tiny
    assert torch.equal(model.W_E, run.model(60).W_E)
    assert not torch.equal(model.W_E, run.model(0).W_E)
    files = [Path(name).suffix for name in contents(run.folder)]
    assert set(files) == {".json", ".jsonl", ".safetensors"}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("optimizer", "when"), [("adamw", "before"), ("adamw", "after"), ("sgd", "after")]
)
def test_resume_is_bit_exact_from_a_kill_at_every_write(
    abc, tiny, tmp_path, monkeypatch, optimizer, when
):
    preset = replace(tiny, steps=12, save_every=5, optimizer=optimizer)
    whole = train(abc, preset, tmp_path / "whole")
    real, left = Path.replace, [0]

    def replace_or_die(self, target):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            raise Killed
        result = real(self, target)
        if left[0] == 0:
            raise Killed
        return result

    monkeypatch.setattr(Path, "replace", replace_or_die)
    for n_writes in range(1, 20):
        folder = tmp_path / f"killed-{n_writes}"
        left[0] = n_writes
        try:
            train(abc, preset, folder)
        except Killed:
            left[0] = 0
            train(abc, preset, folder)
            assert contents(folder) == contents(whole.folder)
        else:
            break
    assert n_writes > 11  # all of them were tried


CHILD = """
import sys, torch
from dataclasses import replace
from toy_tasks import BigramBackcopy, Preset, train
import json
torch.set_num_threads(1)
folder, task, preset = sys.argv[1], *map(json.loads, sys.argv[2:])
task, preset = BigramBackcopy.from_json(task), Preset.from_json(preset)
say = lambda step, model, task: print(step, flush=True)
train(task, preset, folder, callbacks=[say], callback_steps=range(preset.steps))
"""


@pytest.mark.parametrize(
    "kills", [1, pytest.param(6, marks=pytest.mark.slow)], ids="{} kills".format
)
@pytest.mark.matrix
def test_resume_is_bit_exact_after_kill_9(abc, tiny, tmp_path, kills):
    preset = replace(tiny, steps=300, save_every=20, checkpoints=12)
    whole = train(abc, preset, tmp_path / "whole")
    folder = tmp_path / "killed"
    data = (json.dumps(abc.to_json()), json.dumps(preset.to_json()))
    rng = random.Random(kills)
    command = [sys.executable, "-c", CHILD, str(folder), *data]
    for target in sorted(rng.sample(range(30, 270), kills)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= target:
                    os.kill(child.pid, signal.SIGKILL)
                    break
        assert child.returncode == -signal.SIGKILL
        assert not (folder / "checkpoints/step-000300.safetensors").exists()
    train(abc, preset, folder)
    assert contents(folder) == contents(whole.folder)


def test_a_finished_run_returns_at_once(abc, tiny, tmp_path, monkeypatch):
    run = train(abc, tiny, tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr("toy_tasks.training.update", None)  # any step would fail
    assert train(abc, tiny, tmp_path).steps == run.steps
    assert contents(tmp_path) == before


def test_another_number_of_threads_is_told(abc, tiny, tmp_path):
    def stop(*_):
        raise Killed

    with pytest.raises(Killed):
        train(abc, tiny, tmp_path, callbacks=[stop], callback_steps=[tiny.steps - 1])
    torch.set_num_threads(2)  # the fixture sets it back
    with pytest.warns(UserWarning, match="on 1 threads so far and goes on with 2"):
        train(abc, tiny, tmp_path)
    train(abc, tiny, tmp_path)  # done: nothing is computed, nothing to warn of


def test_callbacks_see_a_model_at_rest(abc, tiny, tmp_path):
    seen = []

    def callback(step, model, task):
        assert task is abc and not model.training and not torch.is_grad_enabled()
        seen.append((step, model.W_E.clone()))

    run = train(abc, tiny, tmp_path, callbacks=[callback])
    assert [step for step, _ in seen] == run.steps
    for step, weight in seen:
        assert torch.equal(weight, run.model(step).W_E)
    plain = train(abc, tiny, tmp_path / "plain")  # measuring disturbs nothing
    assert torch.equal(plain.model().W_E, run.model().W_E)


def test_bfloat16_trains(abc, tiny, tmp_path):
    run = train(abc, replace(tiny, dtype="bfloat16"), tmp_path)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 0.3
    assert run.model().W_E.dtype == torch.float32  # master weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_resumes_bit_exactly(abc, tiny, tmp_path):
    def stop(step, model, task):
        raise Killed

    whole = train(abc, tiny, tmp_path / "whole", device="cuda")
    with pytest.raises(Killed):
        train(abc, tiny, tmp_path / "a", callbacks=[stop], callback_steps=[35])
    again = train(abc, tiny, tmp_path / "a", device="cuda")
    assert torch.equal(again.model().W_E, whole.model().W_E)


def test_frozen_parameters_stay(abc, tiny, tmp_path):
    preset = replace(tiny, model=replace(tiny.model, frozen=("W_E",)))
    run = train(abc, preset, tmp_path)
    assert torch.equal(run.model().W_E, run.model(0).W_E)
    assert not torch.equal(run.model().W_pos, run.model(0).W_pos)


def test_another_run_is_refused(abc, tiny, tmp_path):
    train(abc, tiny, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds another run, with another seed"):
        train(abc, tiny, tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"another preset\.lr"):
        train(abc, replace(tiny, lr=0.1), tmp_path)
    with pytest.raises(ValueError, match=r"another task\.n_bos"):
        train(replace(abc, n_bos=2), tiny, tmp_path)
    assert contents(tmp_path) == before


def test_damaged_and_foreign_checkpoints_are_refused(abc, tiny, tmp_path):
    run = train(abc, tiny, tmp_path / "run")
    path = run.folder / "checkpoints/step-000060.safetensors"
    good = path.read_bytes()

    path.write_bytes(good[:-100])
    with pytest.raises(ValueError, match="damaged"):
        run.model()
    path.unlink()  # as the message advises
    assert train(abc, tiny, run.folder).model().W_E.isfinite().all()
    assert path.read_bytes() == good

    other = train(abc, tiny, tmp_path / "other", seed=1)
    path.write_bytes((other.folder / "checkpoints" / path.name).read_bytes())
    with pytest.raises(ValueError, match="belongs to another run"):
        run.model()

    facts = {"run": run.id, "step": 60}
    write_tensors(path, {"W_E": torch.zeros(2, 2)}, facts)
    with pytest.raises(ValueError, match="does not fit the model"):
        run.model()

    from safetensors.torch import save_file

    save_file({"W_E": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="not written by toy_tasks"):
        run.model()

    with pytest.raises(ValueError, match="nearest is 22"):
        run.model(20)


def test_pickles_are_refused_and_never_executed(abc, tiny, tmp_path):
    import pickle

    from toy_tasks.storage import read_tensors

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    run = train(abc, tiny, tmp_path / "run")
    bomb = pickle.dumps(Bomb())
    (tmp_path / "model.pt").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"pickle.*refused"):
        read_tensors(tmp_path / "model.pt", run.id)
    (run.folder / "checkpoints/step-000060.safetensors").write_bytes(bomb)
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        run.model()
    with pytest.raises(FileNotFoundError, match="never read"):
        load_run(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_that_cannot_be_written(abc, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot make the folder"):
        train(abc, tiny, tmp_path / "file" / "run")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*config.json: No space"):
        train(abc, tiny, tmp_path / "run")
    assert contents(tmp_path / "run") == {}


def test_config_of_another_kind_is_refused(abc, tiny, tmp_path):
    train(abc, tiny, tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    for text, message in (
        ("{", "damaged"),
        ("[]", "not a JSON object"),
        (json.dumps({**data, "format": "x"}), "another program"),
        (json.dumps({k: v for k, v in data.items() if k != "task"}), "lacks task"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_run(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        train(abc, tiny, tmp_path)


def test_two_processes_do_not_train_in_one_folder(abc, tiny, tmp_path):
    def nested(step, model, task):
        with pytest.raises(RuntimeError, match="another process"):
            train(abc, tiny, tmp_path)

    train(abc, tiny, tmp_path, callbacks=[nested], callback_steps=[5])


def test_progress_bar_shows_rate_and_time_left(abc, tiny, tmp_path, capsys):
    train(abc, tiny, tmp_path / "a", progress=True)
    assert "60/60" in capsys.readouterr().err
    train(abc, tiny, tmp_path / "b")
    assert capsys.readouterr().err == ""


def test_schedules(tiny):
    assert log_spaced(1000, 4) == [0, 1, 10, 100, 1000]
    given = replace(tiny, checkpoints=(5, 0, 5))
    assert given.checkpoint_steps() == [0, 5, 60]
    with pytest.raises(ValueError, match=r"0 \(before the first step\) to 60"):
        replace(tiny, checkpoints=(61,))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    preset = PRESETS[name]
    data = json.loads(json.dumps(preset.to_json()))
    assert preset.name == name and Preset.from_json(data) == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
    ],
    ids=str,
)
def test_bad_presets_are_explained(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny, **change)
