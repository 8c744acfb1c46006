"""Speed of toy_tasks: the generator, its share of training, training against matmuls.

    python benchmarks/toy.py [--threads N] [--repeats N] [--out FILE.json]

Every ratio comes from one run: its two sides are timed in turn, again and again,
and the median of the ratios counts, so a busy machine slows both alike.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from toy_tasks import PRESETS, BigramBackcopy
from toy_tasks.state import TrainingState
from toy_tasks.training import update


def plain_generator(task: BigramBackcopy, batch: int, length: int, seed: int) -> None:
    """What one writes first: one numpy draw per token."""
    rng = np.random.default_rng(seed)
    table, first = task.table.numpy(), task.first_law.numpy()
    for _ in range(batch):
        tokens = [task.bos, rng.choice(task.d_vocab, p=first)]
        while len(tokens) < length:
            if tokens[-1] in task.triggers:
                tokens.append(tokens[-2])
            else:
                tokens.append(rng.choice(task.d_vocab, p=table[tokens[-1]]))


def bare_products(
    batch: int, n_pos: int, d_vocab: int
) -> tuple[Callable[[], None], int]:
    """The matrix products of one bb-cpu step on ready tensors; and their FLOPs.

    Forward, gradient by input and gradient by weight of q, k, v together, o, both
    MLP matrices and the unembedding; scores and pattern times values per sequence.
    """
    config = PRESETS["bb-cpu"].model
    rows, d, dh, dm = batch * n_pos, config.d_model, config.d_head, config.d_mlp
    pairs, flops = [], 0
    for n_in, n_out in ((d, 3 * dh), (dh, d), (d, dm), (dm, d), (d, d_vocab)):
        x, w, g = (torch.randn(s) for s in ((rows, n_in), (n_in, n_out), (rows, n_out)))
        pairs += [(x, w), (g, w.T), (x.T, g)]
        flops += 3 * 2 * rows * n_in * n_out
    q, a = torch.randn(batch, n_pos, dh), torch.randn(batch, n_pos, n_pos)
    pairs += [(q, q.mT), (a, q), (a, q), (a.mT, q), (q, q.mT), (a.mT, q)]
    flops += 6 * 2 * batch * n_pos * n_pos * dh

    def run() -> None:
        for left, right in pairs:
            left @ right

    return run, flops


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    task, preset = BigramBackcopy.from_text(), PRESETS["bb-cpu"]
    batch, n_pos = preset.batch, preset.model.n_ctx
    with tempfile.TemporaryDirectory() as folder:
        state = TrainingState.start(task, preset, 0, Path(folder), torch.device("cpu"))
    products, flops = bare_products(batch, n_pos, task.d_vocab)
    tokens = task.sample(batch, n_pos + 1, seed=0)
    sample = lambda: task.sample(batch, n_pos + 1, seed=1)  # noqa: E731
    step = lambda: update(state.model, state.optimizer, tokens)  # noqa: E731
    few = 4  # sequences of the plain generator: it takes long enough
    plain = lambda: plain_generator(task, few, n_pos + 1, seed=1)  # noqa: E731
    timed = {"sample": sample, "plain": plain, "step": step, "products": products}
    for call in timed.values():
        call()  # warm-up
    rounds = [
        {name: seconds(call) for name, call in timed.items()}
        for _ in range(options.repeats)
    ]

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(value(r) for r in rounds)

    n_tokens = batch * (n_pos + 1)
    plain_share = few / batch
    figures = {
        "threads": options.threads,
        "generator_tokens_per_s": median(lambda r: n_tokens / r["sample"]),
        "plain_tokens_per_s": median(lambda r: n_tokens * plain_share / r["plain"]),
        "generator_speedup": median(lambda r: r["plain"] / plain_share / r["sample"]),
        "generator_share_of_training": median(
            lambda r: r["sample"] / (r["sample"] + r["step"])
        ),
        "train_tokens_per_s": median(
            lambda r: batch * n_pos / (r["sample"] + r["step"])
        ),
        "step_ms": median(lambda r: 1e3 * r["step"]),
        "products_ms": median(lambda r: 1e3 * r["products"]),
        "products_gflop_per_s": median(lambda r: flops / r["products"] / 1e9),
        "step_over_products": median(lambda r: r["step"] / r["products"]),
    }
    print(f"toy_tasks, bb-cpu ({batch} x {n_pos} tokens), {options.threads} threads")
    print(f"{'':32}{'measured':>12}  bound")
    bounds = {
        "generator_speedup": ">= 20",
        "generator_share_of_training": "< 0.10",
    }
    for name, value in figures.items():
        print(f"{name:32}{value:>12,.3g}  {bounds.get(name, '')}".rstrip())
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
