"""A finite amount of data: every sequence once a round, the same after a resume."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from toy_tasks import train
from toy_tasks.repeats import Repeats


def rows_of(tokens: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in tokens.tolist()]


@pytest.mark.parametrize(("n", "size"), [(10, 4), (3, 8), (8, 8), (5, 1)])
def test_each_round_reads_every_sequence_once(abc, n, size):
    pool = Repeats.draw(abc, n, 20, seed=3)
    assert len(set(rows_of(pool.tokens))) == n
    read = [row for step in range(2 * n) for row in rows_of(pool.batch(size, step))]
    rounds = [read[i : i + n] for i in range(0, len(read) - n + 1, n)]
    for one in rounds:
        assert Counter(one) == Counter(rows_of(pool.tokens))
    assert n < 5 or rounds[0] != rounds[1]


def test_they_depend_on_the_seed_alone_and_are_not_the_fresh_ones(abc):
    one, two, other = (Repeats.draw(abc, 6, 20, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.batch(4, 7), two.batch(4, 7))
    assert not torch.equal(one.tokens, other.tokens)
    fresh = {row for s in range(20) for row in rows_of(abc.sequences(6, 20, (3, s)))}
    assert not fresh & set(rows_of(one.tokens))


@pytest.mark.matrix
def test_a_stopped_run_goes_on_bit_for_bit(task, tiny, tmp_path):
    few = replace(tiny, n_sequences=5)
    whole = train(task, few, tmp_path / "whole", progress=False)

    def stop(step, model, task):
        if step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            task, few, tmp_path / "cut", callbacks=[stop], callback_steps=[33],
            progress=False,
        )  # fmt: skip
    cut = train(task, few, tmp_path / "cut", progress=False)
    assert whole.history == cut.history
    for a, b in zip(whole.model().parameters(), cut.model().parameters(), strict=True):
        assert torch.equal(a, b)
    plain = train(task, tiny, tmp_path / "plain", progress=False)
    assert plain.history[-1]["loss"] != whole.history[-1]["loss"]
    with pytest.raises(ValueError, match="n_sequences=0"):
        replace(tiny, n_sequences=0)
