"""The standard library as a task: lossless tokens, windows, what stands first."""

import json

import pytest
import torch

from toy_tasks import Preset, SourceText, ToyConfig, load_run, train
from toy_tasks.task import task_from_json
from toy_tasks.text import library
from toy_tasks.text.library import library_text


@pytest.fixture(scope="module")
def task():
    return SourceText.from_library(300)


TEXTS = (
    "def f(self):\n    return self._x9  # why?\n\n\n",
    "    import os\n\tnot_a_word == 'If'\n",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_give_back_the_text(task, text):
    assert task.decode(task.encode(text)) == text.replace("\t", "<?>")
    assert max(task.encode(text), default=0) < task.bos


def test_frequent_words_are_one_token(task):
    assert len(task.encode("\n        return self")) == 3
    assert len(SourceText.from_library(0).encode("\n  return")) == 9


@pytest.mark.matrix
def test_windows_are_the_text(task):
    training, held_out = library_text()
    bare = SourceText.from_library(300, n_bos=0)
    learnt = bare.sample(20, 12, 3)
    unseen = bare.sample(20, 12, 3, part="held-out")
    for rows, text in ((learnt, training), (unseen, held_out)):
        for window in map(bare.decode, rows):
            assert "<?>" in window or window in text


def test_same_seed_same_windows(task):
    one, same = task.sample(4, 9, (1, 2)), task.sample(4, 9, (1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, task.sample(4, 9, (1, 3)))
    assert task.sequences(4, 9, 1).shape == (4, 10)


def test_what_stands_first():
    plain = SourceText.from_library(300, n_bos=0).sample(400, 8, 5)
    options = {"n_bos": 1, "bos_at": 4, "random_at": (2, 4)}
    task = SourceText.from_library(300, **options)
    tokens = task.sample(400, 8, 5)
    assert (tokens[:, [0, 4]] == task.bos).all()
    kept = [1, 5, 6, 7]
    assert torch.equal(tokens[:, kept], plain[:, kept])  # the same windows
    random = tokens[:, 2:4].flatten()
    assert random.max() < task.bos
    # Uniform over d_vocab - 1 tokens: the text itself has far fewer different ones.
    assert len(random.unique()) > 1.5 * len(plain[:, 2:4].unique())


@pytest.mark.matrix
def test_short_windows_end_inside_the_opening():
    task = SourceText.from_library(50, n_bos=0, random_at=(1, 4), bos_at=6)
    assert task.sample(3, 2, 0).shape == (3, 2)


def test_training_and_its_folder(task, tmp_path):
    model = ToyConfig(d_model=16, d_head=16, d_mlp=16, n_ctx=16, n_layers=1)
    preset = Preset("tiny", model, steps=60, batch=8, lr=1e-2)
    run = train(task, preset, tmp_path, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 1
    assert load_run(tmp_path).task == task


def test_another_pythons_library_draws_nothing(task):
    data = json.loads(json.dumps(task.to_json()))
    assert task_from_json(data) == task
    other = task_from_json({**data, "digest": "0" * 16, "python": "3.99.0"})
    assert isinstance(other, SourceText)
    assert other.decode(other.encode("return")) == "return"
    with pytest.raises(ValueError, match=r"library of Python 3\.99\.0"):
        other.sample(1, 4, 0)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"n_bos": -1}, "n_bos=-1"),
        ({"random_at": (0, 1)}, "random_at"),
        ({"random_at": (3, 3)}, "random_at"),
        ({"bos_at": 0}, "bos_at=0"),
        ({"bos_at": 2, "random_at": (2, 4)}, "bos_at=2"),
        ({"n_words": -1}, "n_words=-1"),
    ],
)
def test_bad_options(options, what):
    with pytest.raises(ValueError, match=what):
        SourceText.from_library(**{"n_words": 50, **options})


def test_bad_windows(task):
    for batch, length in ((0, 4), (1, 0), (1, 10**9)):
        with pytest.raises(ValueError, match="sample: batch="):
            task.sample(batch, length, 0)


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    library_text.cache_clear()
    with pytest.raises(FileNotFoundError, match="0 modules"):
        library_text()
    with pytest.raises(FileNotFoundError, match="no tests"):
        library_text(with_tests=True)
