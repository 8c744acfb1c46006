import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from toy_tasks import BigramBackcopy


def assert_follows(counts: torch.Tensor, law: torch.Tensor) -> None:
    """Chi-square of counts against a law; impossible outcomes must never occur."""
    assert counts[law == 0].sum() == 0
    expected = law * counts.sum()
    rare = expected < 5  # pooled, as the chi-square approximation asks
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    want = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen, want = seen[want > 0], want[want > 0]
    if len(want) > 1:
        assert chisquare(seen.numpy(), want.numpy()).pvalue > 1e-4


def follower_counts(tokens: torch.Tensor, where: torch.Tensor, n: int) -> torch.Tensor:
    """Counts of the tokens after the places marked in `where` [batch pos]."""
    return torch.bincount(tokens[:, 1:][where[:, :-1]], minlength=n)


def test_bigrams_triggers_and_first_token_follow_the_specification(task):
    tokens = task.sample(4000, 128, seed=3)
    trigger = task.is_trigger(tokens)
    for token in range(task.d_vocab):
        if token in (*task.triggers, task.bos):
            continue
        counts = follower_counts(tokens, tokens == token, task.d_vocab)
        assert_follows(counts, task.table[token])

    copied = tokens[:, 2:] == tokens[:, :-2]
    assert copied[trigger[:, 1:-1]].all()
    assert (tokens[:, 0] == task.bos).all()
    assert (tokens[:, 1:] != task.bos).all()

    law = task.marginal.clone()
    law[task.triggers] = 0
    first = torch.bincount(tokens[:, 1], minlength=task.d_vocab)
    assert_follows(first, law / law.sum())


def test_table_is_counted_by_hand():
    # aabab: pairs aa, ab, ba, ab
    task = BigramBackcopy.from_text("aabab", n_triggers=1, min_count=1)
    assert task.vocab == ["a", "b", "<s>"]
    assert task.triggers == [0]
    want = [[1 / 3, 2 / 3, 0], [1, 0, 0], [3 / 5, 2 / 5, 0]]
    assert torch.equal(task.table, torch.tensor(want, dtype=torch.float64))
    assert task.uniform_successors().table[0].tolist() == [0.5, 0.5, 0]


def test_default_task_is_the_documented_one(task):
    assert task.d_vocab == 66 and task.bos == 65
    assert [task.vocab[t] for t in task.triggers] == [" ", "e", "t"]
    share = task.is_trigger(task.sample(500, 65, seed=0)).double().mean().item()
    assert share == pytest.approx(0.32, abs=0.03)


def test_oracle_loss_is_the_entropy_worked_by_hand(abc):
    prompt = torch.tensor([abc.encode("<s>bbabcc")])
    # <s>: b 2/3, c 1/3. After b or c: one bit. After the trigger a: no doubt.
    bit = math.log(2)
    first = math.log(3) - 2 / 3 * bit
    want = [first, bit, bit, 0, bit, bit, bit]
    assert abc.oracle_entropy(prompt)[0].tolist() == pytest.approx(want, abs=1e-12)

    # The chain stays on its first letter, with lone a's between: a third of the
    # positions are a in the long run, so the floor is 2/3 of a bit.
    tokens = abc.sample(400, 500, seed=1)
    loss = abc.oracle_loss(tokens)[:, 20:]
    assert loss.mean().item() == pytest.approx(2 / 3 * bit, abs=0.005)


@pytest.mark.parametrize(
    "variant",
    [
        {"mode": "markov"},
        {"mode": "dormant_markov"},
        {"copy_probability": 0.3},
        {"n_bos": 0},
        {"n_bos": 2},
        {"random_at": (1, 3)},
        {"random_at": (4, 5), "copy_probability": 0.5},
        {"n_bos": 0, "random_at": (0, 2)},
        {"n_bos": 0, "random_at": (0, 1), "delimiter_probability": 0.2},
        {"n_bos": 0, "bos_at": 1},
        {"bos_at": 4, "random_at": (5, 6)},
        {"bos_at": 11, "mode": "dormant_markov"},
        {"delimiter_probability": 0.2},
        {"delimiter_probability": 0.1, "copy_probability": 0.5, "n_bos": 2},
    ],
    ids=str,
)
def test_every_variant_is_drawn_from_its_oracle(variant):
    text = "abacabadabacabae" * 8 + "edcba" * 9
    task = BigramBackcopy.from_text(text, n_triggers=2, min_count=1, **variant)
    tokens = task.sample(3000, 12, seed=5)
    laws = task.oracle_logprobs(tokens).exp()
    torch.testing.assert_close(laws.sum(-1), torch.ones_like(laws[..., 0]))
    position = torch.arange(12).expand_as(tokens)
    a, b = task.random_at or (-9, -9)
    p = -9 if task.bos_at is None else task.bos_at
    usual = torch.tensor(
        [not (t + 1 in range(a, b) or t in (p - 1, p)) for t in range(12)]
    )
    for before in range(task.d_vocab):
        for token in range(task.d_vocab):
            where = (tokens == token) & (position > task.n_bos) & usual
            where[:, 1:] &= tokens[:, :-1] == before
            where[:, -1] = False
            if where.any():
                law = laws[where][0]
                assert_follows(follower_counts(tokens, where, task.d_vocab), law)
    for t in range(12):
        law = task.first_law if t in (task.n_bos, p + 1) else None
        if t in range(a, b):
            law = torch.ones(task.d_vocab).double() / (task.d_vocab - 1)
            law[task.bos] = 0
        if t == p:
            law = torch.eye(task.d_vocab).double()[task.bos]
        if law is not None:
            counts = torch.bincount(tokens[:, t], minlength=task.d_vocab)
            assert_follows(counts, law)
            if t:
                told = laws[:, t - 1]
                torch.testing.assert_close(told, law.expand_as(told))
    assert (tokens[:, : task.n_bos] == task.bos).all()
    if task.n_bos == 2:
        assert laws[:, 0, task.bos].eq(1).all()


def test_out_of_order_positions_worked_by_hand(abc):
    """Position 0 <s>, 1 b, 2 random, 3 after it, 4 <s>, 5 opens anew, 6."""
    odd = replace(abc, random_at=(2, 3), bos_at=4)
    prompt = torch.tensor([abc.encode("<s>bab<s>bb")])
    law = odd.oracle_logprobs(prompt)[0].exp()
    third, even = [1 / 3, 1 / 3, 1 / 3, 0], [0.5, 0.5, 0, 0]
    opening = [0, 2 / 3, 1 / 3, 0]  # the marginal .4 .4 .2 without the trigger
    want = [opening, third, [0, 1, 0, 0], [0, 0, 0, 1], opening, even, even]
    torch.testing.assert_close(law, torch.tensor(want, dtype=torch.float64))
    for bad in ({"random_at": (0, 2)}, {"random_at": (3, 3)}, {"bos_at": 0}):
        with pytest.raises(ValueError, match="n_bos=1"):
            replace(abc, **bad)
    with pytest.raises(ValueError, match="not random"):
        replace(abc, random_at=(2, 5), bos_at=4)


def test_variants_say_what_follows_a_trigger(abc):
    prompt = torch.tensor([abc.encode("<s>bcba")])
    b, c = abc.table[1], torch.eye(4, dtype=torch.float64)[1]  # x' = b; copy of b

    def after(task):
        return task.oracle_logprobs(prompt)[0, -1].exp()

    assert torch.equal(after(abc), c)
    assert torch.equal(after(replace(abc, mode="markov")), abc.table[0])
    assert torch.equal(after(replace(abc, mode="dormant_markov")), b)
    mixed = replace(abc, copy_probability=0.25)
    torch.testing.assert_close(after(mixed), 0.25 * c + 0.75 * b)


def test_sample_depends_on_the_seed_alone(task, abc):
    again = task.sample(8, 40, seed=(7, 3))
    assert torch.equal(task.sample(8, 40, seed=(7, 3)), again)
    assert not torch.equal(task.sample(8, 40, seed=(7, 4)), again)
    # The same on every machine and numpy: these tokens are part of the format.
    assert abc.decode(abc.sample(1, 24, seed=0)[0]) == "<s>ccaccaccccacaccccaccaca"


def test_json_keeps_every_bit(task):
    assert not {"random_at", "bos_at"} & set(task.to_json())  # as first written
    odd = replace(task, copy_probability=0.1 + 0.2, n_bos=2, random_at=(2, 4), bos_at=5)
    back = BigramBackcopy.from_json(json.loads(json.dumps(odd.to_json())))
    assert torch.equal(back.table, odd.table)
    assert torch.equal(back.marginal, odd.marginal)
    assert back.to_json() == odd.to_json()
    assert torch.equal(back.sample(4, 50, seed=1), odd.sample(4, 50, seed=1))


def test_text_round_trip(task):
    text = "<s>sinks and drains"
    assert task.decode(task.encode(text)) == text
    assert task.encode("<s>")[0] == task.bos
    with pytest.raises(ValueError, match="not in the vocabulary"):
        task.encode("\u2603")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ""}, "empty"),
        ({"text": "abab", "min_count": 1}, "n_triggers=3.*keeps 2 distinct"),
        ({"text": "abab"}, "lower min_count"),
        ({"delimiter_probability": 1.0}, "0.03 to 0.40"),
        ({"n_bos": 3}, "0, 1 or 2"),
        ({"copy_probability": 1.5}, "dormant Markov"),
    ],
    ids=str,
)
def test_bad_input_is_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        BigramBackcopy.from_text(**arguments)


def test_advice_of_the_errors_works():
    assert BigramBackcopy.from_text("abab", n_triggers=1, min_count=1).triggers == [0]


def test_sample_refuses_sizes_that_are_none(abc):
    with pytest.raises(ValueError, match="at least 1"):
        abc.sample(0, 5, seed=0)
    assert abc.sample(1, 1, seed=0).tolist() == [[abc.bos]]


def test_foreign_json_is_refused(abc):
    with pytest.raises(ValueError, match="no Bigram-Backcopy task"):
        BigramBackcopy.from_json({**abc.to_json(), "task": "arithmetic"})


def test_alias_table_gives_each_outcome_its_share():
    """Counted over every cell and limit, not sampled: exact to 2**-32."""
    from toy_tasks.alias import AliasTable

    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(11, 0.3), size=20)
    rows[0] = np.eye(11)[4]
    alias = AliasTable.from_rows(rows)
    n_cells = 2**alias.bits
    kept = alias.limit.reshape(20, n_cells) / 2 ** (32 - alias.bits) / n_cells
    got = np.zeros((20, n_cells))
    got += kept
    other = alias.other.reshape(20, n_cells)
    for row in range(20):
        np.add.at(got[row], other[row], 1 / n_cells - kept[row])
    np.testing.assert_allclose(got[:, :11], rows, atol=11 * 2**-32)
    assert (got[:, 11:] == 0).all() and got[0, 4] == 1
