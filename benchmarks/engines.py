"""Throughput of the engines: pairs a second of a sweep, against one process.

    python benchmarks/engines.py [--pairs 600]

Four layers of width 64, pairs of 24 tokens, every layer and position patched. With a
worker a core the arithmetic allows a ratio of the number of cores. The rate is that of
all pairs but the first few, whose time is that of starting the workers (Python, torch,
the model); it is printed too. Asserts 1.5 for two workers.
"""

import argparse
import time

import pandas as pd
import torch

import mechsink as ms
from mechsink.engines.engine import Engine
from mechsink.engines.local import Here, Pool
from mechsink.engines.on_ray import RayCluster
from mechsink.models.toy import ToyModel
from toy_tasks import ToyConfig
from toy_tasks.transformer import ToyTransformer

WANTED = 1.5
LENGTH, VOCABULARY, FEW = 24, 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1500)
    n = parser.parse_args().pairs
    config = ToyConfig(
        d_vocab=VOCABULARY, n_layers=4, n_heads=4, d_model=64, d_head=16, d_mlp=256,
        n_ctx=LENGTH,
    )  # fmt: skip
    model = ToyModel(ToyTransformer(config, seed=0).eval(), name="small")
    draw = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(VOCABULARY, (2, n, LENGTH), generator=draw)
    answers = torch.randint(VOCABULARY - 1, (n,), generator=draw)
    pairs = ms.PromptPairs(clean, corrupted, answers, answers + 1)
    engines: list[Engine] = [Here(), Pool(2), RayCluster(workers=2)]
    tables: list[pd.DataFrame] = []
    rates: dict[str, float] = {}
    for engine in engines:
        start, _ = timed(model, some(pairs, FEW), engine)
        seconds, table = timed(model, pairs, engine)
        tables.append(table)
        rates[engine.name] = (n - FEW) / (seconds - start)
        print(
            f"{engine.name:5} {rates[engine.name]:7.1f} pairs/s "
            f"{rates[engine.name] / rates['here']:5.2f} times one process; "
            f"{n} pairs {seconds:.1f} s, the first {FEW} {start:.1f} s",
            flush=True,
        )
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    print("all tables are equal to the last bit")
    for name in ("pool", "ray"):
        ratio = rates[name] / rates["here"]
        assert ratio >= WANTED, f"{name}: {ratio:.2f} times, {WANTED} wanted"


def timed(
    model: ToyModel, pairs: ms.PromptPairs, engine: Engine
) -> tuple[float, pd.DataFrame]:
    """Seconds, and what was found."""
    started = time.perf_counter()
    found = ms.spread(ms.patch_sweep, model, pairs, ms.logit_diff, engine=engine)
    return time.perf_counter() - started, found.table


def some(pairs: ms.PromptPairs, n: int) -> ms.PromptPairs:
    """The first pairs."""
    fields = (pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong)
    return ms.PromptPairs(*(field[:n] for field in fields))


if __name__ == "__main__":
    main()
