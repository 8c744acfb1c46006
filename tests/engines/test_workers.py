"""Processes and Ray: the bits of one process, whoever dies on the way."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

import mechsink as ms
from mechsink.engines.engine import Engine, Work
from mechsink.engines.local import Here, Pool
from mechsink.engines.on_ray import RayCluster
from mechsink.models.carried import carried
from mechsink.models.toy import ToyModel
from tests.engines import measures
from tests.engines.measures import dies_always, dies_once, pairs, toy_model

pytestmark = pytest.mark.matrix  # each start of workers takes seconds
ENGINES = [
    pytest.param(Pool(2), id="pool"),
    pytest.param(RayCluster(workers=2), id="ray"),
]


def nothing() -> None:
    pass


def squared(opened: None, item: int, advance) -> int:
    if item < 0:
        raise KeyError(item)
    advance(item)
    return item**2 + torch.get_num_threads() - 1  # one thread, or the test fails


def spread(engine: Engine, measure=ms.patch_sweep, **options):
    return ms.spread(
        measure, toy_model(), pairs(), ms.logit_diff, engine=engine, **options
    )


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Here(), id="here"),
        pytest.param(Pool(2), id="pool"),
        pytest.param(RayCluster(workers=2), id="ray", marks=pytest.mark.slow),
    ],
)
def test_items_come_back_by_number(engine):
    pytest.importorskip("ray") if engine.name == "ray" else None
    steps = []
    done = dict(engine.run(Work(nothing, squared), [3, -1, 4, 5], steps.append))
    assert {n: outcome.value for n, outcome in done.items() if outcome.is_done} == {
        0: 9,
        2: 16,
        3: 25,
    }
    assert isinstance(done[1].value, KeyError)
    assert sum(steps) == 12


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_bits_though_a_worker_is_lost(engine, tmp_path):
    pytest.importorskip("ray") if engine.name == "ray" else None
    one = spread(Here())
    dies = partial(dies_once, at=2, flag=str(tmp_path / "died"))
    many = spread(engine, dies)
    assert (tmp_path / "died").exists()
    pd.testing.assert_frame_equal(many.table, one.table, check_exact=True)
    assert many.clean == one.clean
    assert many.meta["engine"] == engine.name


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Pool(2), id="pool"),
        pytest.param(RayCluster(workers=2), id="ray", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_piece_that_kills_every_worker_is_given_up(engine):
    said = r"failed on 1 of 5 prompts[\s\S]*prompt 1: 3 workers died"
    with pytest.raises(RuntimeError, match=said):
        spread(engine, partial(dies_always, at=1))


def test_edges_are_the_same_bits_too():
    found = [
        ms.spread(ms.eap_ig, toy_model(), pairs(), ms.logit_diff, engine=engine)
        for engine in (Here(), Pool(2))
    ]
    pd.testing.assert_frame_equal(found[0].table, found[1].table, check_exact=True)


def test_a_model_that_cannot_be_opened_says_why():
    with pytest.raises(FileNotFoundError, match=r"no folder '\./nowhere'"):
        ms.spread(ms.patch_sweep, "./nowhere", pairs(), ms.logit_diff, engine=Pool(2))


SCRIPT = """
import sys
import torch
import mechsink as ms
from tests.engines.measures import pairs, toy_model

def third_logit(run, prompts):  # of the script itself, which has no guard
    return run.logits[:, -1, 3]

third_logit.reads = frozenset()
print("started", flush=True)
r = ms.spread(ms.patch_sweep, toy_model(), pairs(), third_logit, workers=2)
print(r.table["value"].sum())
"""


def test_scripts_need_no_guard_and_may_bring_metrics(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("started") == 1
    total = float(ran.stdout.split()[-1])

    def third_logit(run, prompts):
        return run.logits[:, -1, 3]

    third_logit.reads = frozenset()
    one = ms.patch_sweep(toy_model(), pairs(), third_logit)
    assert total == pytest.approx(one.table["value"].sum(), rel=1e-4)


def test_leaving_early_ends_the_workers():
    def slow(opened, item, advance):
        time.sleep(60 * item)
        return os.getpid()

    outcomes = Pool(2).run(Work(nothing, slow), [0, 1, 1], lambda steps=1: None)
    _, first = next(outcomes)
    outcomes.close()
    assert not psutil.pid_exists(first.value)
    mine = psutil.Process().children(recursive=True)
    at_work = [p for p in mine if "popen_loky" in " ".join(p.cmdline())]
    assert not at_work


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_carried_models_are_the_same_to_the_bit(backend):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = ms.load_model(
        LlamaForCausalLM(config).to(torch.bfloat16), backend=backend, name="tiny"
    )
    tokens = torch.arange(6)[None]
    here = model.run(tokens).logits
    there = list(
        Pool(1).run(Work(carried(model).open, measures.logits), [tokens], print)
    )
    assert there[0][1].is_done, there[0][1].value
    assert torch.equal(torch.tensor(there[0][1].value), here.float())


def test_a_model_of_ones_own_must_be_named():
    class Own(ToyModel):
        """Not what its parts would give."""

    own = Own(toy_model().toy, name="mine")
    with pytest.raises(ValueError, match=r"mine \(Own\) can't be sent"):
        carried(own)
    assert ms.spread(ms.patch_sweep, own, pairs(), ms.logit_diff, engine="here")
