"""Attention x gradient: a linear model by hand, finite differences, generation."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from mechsink.interventions.attention_edits import at_layers
from mechsink.interventions.saliency_edits import reinforce_recent, saliency_generate
from mechsink.models.generation import generate
from mechsink.models.toy import ToyModel
from mechsink.run import ModelShape, Run
from mechsink.sinks.spans.alarm import (
    SaliencyAlarm,
    candidate_saliency,
    saliency_alarm,
)
from mechsink.sinks.spans.saliency import AttentionSaliency, attention_saliency
from mechsink.sites import Site
from tests.models.backends import SMALL, load
from toy_tasks import ToyConfig, ToyTransformer

PATTERN = Site("pattern", 0)
U = torch.tensor([2.0, 1.0, -1.0]).double()  # logit of a token: u times all attention


@dataclass(frozen=True, eq=False)
class LinearModel:
    """One layer, two heads; logits are u_v * (sum of both heads' attention)."""

    rows: torch.Tensor  # head query key
    name = "linear"
    device = torch.device("cpu")
    dtype = torch.float64
    info: ClassVar = {"backend": "linear"}
    shape = ModelShape(1, 2, 2, 1, 1, 1, 3, 99)

    def to_tokens(self, texts):
        raise NotImplementedError

    def to_strings(self, tokens):
        return [str(int(t)) for t in tokens]

    def run(self, tokens, *, read=(), edit=None, grad=False):
        n = tokens.shape[1]
        pattern = self.rows[None, :, :n, :n].double().expand(len(tokens), 2, n, n)
        pattern = (edit or {}).get(PATTERN, lambda x: x)(pattern)
        logits = pattern.sum((1, 3))[..., None] * U
        return Run(tokens, logits, {PATTERN: pattern} if PATTERN in read else {})

    def visit(self, tokens, *, attention=None, residual=None):
        raise NotImplementedError

    def w_o(self, layer):
        raise NotImplementedError


def two_heads(n=8):
    """Head 0 looks at the token before, but query 6 at <s>; head 1 only at <s>."""
    rows = torch.zeros(2, n, n)
    rows[0, range(1, n), range(n - 1)] = 1
    rows[0, 6] = 0
    rows[0, [0, 6], 0] = 1
    rows[1, :, 0] = 1
    return LinearModel(rows)


def slope(token):
    """d log p(token) / d attention: u minus its mean; each row of both heads sums 1."""
    p = (2 * U).softmax(-1)
    return abs(float(U[token] - (p * U).sum()))


def test_a_linear_model_by_hand():
    model = two_heads()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    got = attention_saliency(model, tokens, torch.tensor([0, 2]))
    for prompt, token in ((0, 0), (1, 2)):
        here = got.table[got.table["batch"] == prompt]
        # Query 4: half of the heads at 3, half at 0; the other half of each is 0.
        want = np.array([0.5, 0, 0, 0.5, 0]) * slope(token)
        assert here["last"].to_numpy() == pytest.approx(want)
        assert here["all"].to_numpy() == pytest.approx(want)  # the last alone predicts
        assert got.of([3], prompt) == pytest.approx(slope(token) / 2)
        assert got.of([2, 3], prompt, layers=[0]) == pytest.approx(slope(token) / 4)
    likeliest = attention_saliency(model, tokens)
    assert likeliest.of([3], 1) == got.of([3], 0)


@dataclass(frozen=True, eq=False)
class Linear:
    """A weighted sum of a layer's attention: its gradient is the weights."""

    weights: torch.Tensor
    reads = frozenset({Site("pattern", 1)})

    def __call__(self, run, prompts=None):
        return (run.cache[Site("pattern", 1)] * self.weights).sum((1, 2, 3))


def small():
    torch.manual_seed(0)
    return ToyModel(ToyTransformer(ToyConfig(**SMALL)).double().eval())


TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5], [2, 7, 18, 28, 18, 28]])


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["toy", "llama"])
def test_a_linear_metric_has_its_own_weights_as_gradient(name):
    model = small() if name == "toy" else load(name)
    weights = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    got = attention_saliency(model, TOKENS, metric=Linear(weights), layers=[1]).table
    pattern = model.run(TOKENS, read=[Site("pattern", 1)]).cache[Site("pattern", 1)]
    for prompt in range(2):
        want = (pattern[prompt] * weights).abs().mean(0)
        here = got[got["batch"] == prompt]
        assert here["last"].to_numpy() == pytest.approx(want[-1].numpy(), rel=1e-5)
        assert here["all"].to_numpy() == pytest.approx(want.sum(0).numpy(), rel=1e-5)
    assert set(got["layer"]) == {1}


def test_finite_differences_of_a_toy():
    # A * dL/dA is the slope of L in the logarithm of one weight.
    model, targets = small(), torch.tensor([4, 40])
    got = attention_saliency(model, TOKENS, targets).table

    def logprob(layer, head, key, factor):
        def edit(pattern):
            new = pattern.clone()
            new[:, head, -1, key] *= factor
            return new

        logits = model.run(TOKENS, edit={Site("pattern", layer): edit}).logits[:, -1]
        return logits.log_softmax(-1)[range(2), targets]

    for layer, key in ((0, 2), (1, 0), (2, 5)):
        slopes = [
            (logprob(layer, h, key, 1.001) - logprob(layer, h, key, 0.999)) / 0.002
            for h in range(4)
        ]
        want = torch.stack(slopes).abs().mean(0)
        here = got[(got["layer"] == layer) & (got["pos"] == key)]
        assert here["last"].to_numpy() == pytest.approx(want.numpy(), rel=1e-3)


def test_the_alarm_rings_where_saliency_drops():
    # New tokens at 2 to 7, each predicted by the query before. Query 6 (for token 7)
    # looks at <s>; the others at the token before, half of the heads' attention.
    tokens = torch.zeros(1, 8, dtype=torch.long)
    got = saliency_alarm(two_heads(), tokens, 2, window=2).table
    assert got["pos"].tolist() == [2, 3, 4, 5, 6, 7]
    # Token 3 is predicted by query 2, which looks at 1, in the prompt: 0 on key 2.
    one = slope(0) / 2
    want = [np.nan, 0, one / 2, one / 2, one / 2, 0]
    assert got["saliency"].to_numpy() == pytest.approx(want, nan_ok=True)
    base = [np.nan, np.nan, 0, one / 4, one / 2, one / 2]
    assert got["baseline"].to_numpy() == pytest.approx(base, nan_ok=True)
    assert got["alarm"].tolist() == [False] * 5 + [True]
    # Key 0 of the prompt, which head 1 always looks at: it gains where head 0 joins.
    on_first = saliency_alarm(two_heads(), tokens, 2, span=[0], window=2).table
    both = [2 * one, one, one, one, one, 2 * one]
    assert on_first["saliency"].to_numpy() == pytest.approx(both)
    assert not on_first["alarm"].any()


def test_candidates_by_hand():
    tokens = torch.zeros(2, 5, dtype=torch.long)
    candidates = torch.tensor([[0, 1], [2, 0]])
    ask = candidate_saliency(two_heads(), n_prompt=3, window=4)
    got = ask(tokens, candidates)  # keys 3 and 4; query 4 looks at 3
    want = torch.tensor([[slope(0), slope(1)], [slope(2), slope(0)]]).double() / 4
    torch.testing.assert_close(got, want)
    assert ask(tokens[:, :3], candidates).isnan().all()
    on_span = candidate_saliency(two_heads(), span=[3])(tokens, candidates)
    torch.testing.assert_close(on_span, 2 * want)


PROMPT = torch.arange(16).reshape(2, 8) * 11 % 80


def test_nothing_rejected_is_plain_generation():
    model = load("toy")
    plain = generate(model, PROMPT, 5).tokens
    for saliency, alpha in (
        (lambda texts, candidates: torch.ones(candidates.shape), 1.0),
        (lambda texts, candidates: torch.full(candidates.shape, torch.nan), 1.0),
        (lambda texts, candidates: candidates % 2 * 1.0, 0.0),
        (candidate_saliency(model, n_prompt=8), 0.0),
    ):
        got = saliency_generate(model, PROMPT, 5, saliency, alpha=alpha)
        assert torch.equal(got.tokens, plain)
        assert (got.table["rejected"] == 0).all() and (got.table["rank"] == 0).all()


def test_low_candidates_are_turned_down():
    # Saliency is known from the token: against a loop over whole runs.
    model, levels = load("toy"), torch.tensor([1.0, 0.1, 3.0, 0.4, 0.5])

    def saliency(texts, candidates):
        return levels[candidates % 5]

    got = saliency_generate(
        model, PROMPT, 8, saliency, n_candidates=3, alpha=0.9, window=2
    )
    forced = 0
    for prompt in range(2):
        text, history = PROMPT[prompt].tolist(), []
        for step in range(8):
            logits = model.run(torch.tensor([text])).logits[0, -1]
            best = logits.argsort(descending=True)[:3].tolist()
            least = 0.9 * np.mean(history[-2:]) if history else -np.inf
            fit = [t for t in best if float(levels[t % 5]) >= least]
            forced += not fit
            token = fit[0] if fit else max(best, key=lambda t: levels[t % 5])
            text.append(token)
            history.append(float(levels[token % 5]))
            here = got.table[got.table["batch"] == prompt].iloc[step]
            assert here["token"] == token and here["rank"] == best.index(token)
            assert here["rejected"] == (3 - len(fit) if fit else 2)
            assert here["forced"] == (not fit)
        assert got.tokens[prompt].tolist() == text
    assert got.table["rejected"].sum() > 3 and forced > 0


ROWS = (
    torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double().tril()
)
ROWS = ROWS / ROWS.sum(-1, keepdim=True)


def test_reinforced_attention_by_hand_and_row_by_row():
    even = torch.ones(1, 1, 1, 6).double() / 6
    new = reinforce_recent(3, window=2, gain=3.0)(even)[0, 0, 0]  # query 5: keys 3, 4
    torch.testing.assert_close(new, torch.tensor([1, 1, 1, 3, 3, 1]).double() / 10)
    new = reinforce_recent(4, window=2, gain=3.0)(even)[0, 0, 0]
    torch.testing.assert_close(new, torch.tensor([1, 1, 1, 1, 3, 1]).double() / 8)
    new = reinforce_recent(0, window=3, gain=3.0, decay=0.5)(even)[0, 0, 0]
    torch.testing.assert_close(new, torch.tensor([1, 1, 1.5, 2, 3, 1]).double() / 9.5)
    edit = reinforce_recent(3, window=2, gain=4.0)
    whole = edit(ROWS)
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 3, 8).double())
    torch.testing.assert_close(whole[..., :4, :], ROWS[..., :4, :])  # as the prompt is
    for i in range(8):
        row = edit(ROWS[..., i : i + 1, : i + 1])
        torch.testing.assert_close(row, whole[..., i : i + 1, : i + 1])
    torch.testing.assert_close(reinforce_recent(3, gain=1.0)(ROWS), ROWS)


def test_both_edits_of_generation_together():
    model = load("toy")
    edit = at_layers(reinforce_recent(8, gain=50.0), range(3))
    one = generate(model, PROMPT, 6, edit=edit, keep_logits=True)
    got = saliency_generate(
        model, PROMPT, 6, candidate_saliency(model, n_prompt=8), alpha=0.0, edit=edit
    )
    assert torch.equal(got.tokens, one.tokens)
    plain = generate(model, PROMPT, 6, keep_logits=True)
    assert one.logits is not None and plain.logits is not None
    torch.testing.assert_close(one.logits[:, 0], plain.logits[:, 0])  # no answer yet
    assert not torch.allclose(one.logits[:, 2:], plain.logits[:, 2:])


def test_saved_and_drawn(tmp_path):
    tokens = torch.zeros(1, 8, dtype=torch.long)
    saliency = attention_saliency(two_heads(), tokens)
    again = AttentionSaliency.load(saliency.save(tmp_path / "saliency"))
    assert again.of([0]) == saliency.of([0])
    assert saliency.plot().get_xlabel() == "position"
    alarm = saliency_alarm(two_heads(), tokens, 2)
    back = SaliencyAlarm.load(alarm.save(tmp_path / "alarm"))
    assert back.table["alarm"].tolist() == alarm.table["alarm"].tolist()
    assert alarm.plot().get_ylabel() == "attention x gradient, nats"
    made = saliency_generate(
        load("toy"), PROMPT, 2, lambda texts, candidates: torch.ones(candidates.shape)
    )
    read = type(made).load(made.save(tmp_path / "made"))
    assert torch.equal(read.tokens, made.tokens)
    assert made.plot().get_ylabel() == "saliency, nats"


def test_wrong_arguments_are_refused():
    tokens = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="both given"):
        attention_saliency(
            two_heads(), tokens, torch.tensor([0]), metric=Linear(torch.ones(1))
        )
    with pytest.raises(ValueError, match="positions 0 to 7"):
        attention_saliency(two_heads(), tokens).of([8])
    with pytest.raises(ValueError, match="n_prompt 1 to 7"):
        saliency_alarm(two_heads(), tokens, 8)
    with pytest.raises(ValueError, match=r"span=\[2\]"):
        saliency_alarm(two_heads(), tokens, 2, span=[2])
    with pytest.raises(ValueError, match="one of them"):
        candidate_saliency(two_heads())
    with pytest.raises(ValueError, match="decay=0"):
        reinforce_recent(3, decay=0.0)
    with pytest.raises(ValueError, match="alpha=-1"):
        saliency_generate(load("toy"), PROMPT, 2, candidate_saliency, alpha=-1.0)
