import math

import pytest
import torch
from torch import nn

from toy_tasks import (
    BigramBackcopy,
    ToyConfig,
    ToyTransformer,
    evaluate,
    realised_excess,
)
from toy_tasks.claims import sink_figures


class Oracle(nn.Module):
    """Knows the law; mixes in a uniform one with weight `doubt`."""

    def __init__(self, task: BigramBackcopy, doubt: float = 0.0) -> None:
        super().__init__()
        self.task, self.doubt = task, doubt

    def forward(self, tokens):
        law = self.task.oracle_logprobs(tokens).exp()
        return ((1 - self.doubt) * law + self.doubt / self.task.d_vocab).log()


def test_the_oracle_has_no_excess_risk(abc):
    tokens = abc.sample(50, 40, seed=0)
    result = evaluate(Oracle(abc, 1e-12), abc, tokens)
    assert result["excess"] == pytest.approx(0, abs=1e-9)
    assert result["loss"] == pytest.approx(result["oracle_loss"])


def test_risks_of_the_uniform_guesser_by_hand(abc):
    """ln 4 on every token: 4 tokens, one bit after b or c, no doubt after a."""
    tokens = abc.sample(50, 40, seed=0)
    result = evaluate(Oracle(abc, 1.0), abc, tokens)
    assert result["loss"] == pytest.approx(math.log(4))
    assert result["trigger_loss"] == pytest.approx(math.log(4))
    assert result["trigger_excess"] == pytest.approx(math.log(4))
    assert result["markov_excess"] == pytest.approx(math.log(2))
    first = math.log(3) - 2 / 3 * math.log(2)
    assert result["first_excess"] == pytest.approx(math.log(4) - first)


def test_excess_is_the_loss_above_the_oracle_on_average(task):
    tokens = task.sample(400, 65, seed=1)
    result = evaluate(Oracle(task, 0.3), task, tokens)
    measured = result["loss"] - result["oracle_loss"]
    assert result["excess"] == pytest.approx(measured, abs=0.01)


def test_a_group_without_positions_is_nan(abc):
    result = evaluate(Oracle(abc), abc, torch.tensor([abc.encode("<s>bbb")]))
    assert math.isnan(result["trigger_loss"])


def test_sink_figures_of_a_planted_head(abc):
    """Scores all equal: attention 1/(i+1) everywhere, sink logit 0."""
    from toy_tasks import ToyConfig, ToyTransformer

    model = ToyTransformer(ToyConfig(d_vocab=4, d_model=8, d_head=4, n_ctx=4))
    nn.init.zeros_(model.blocks[0].attn.W_Q)
    tokens = torch.tensor([abc.encode("<s>bab")])
    (row,) = sink_figures(model, abc, tokens)
    assert row["bos_markov"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert row["bos_trigger"] == row["previous_trigger"] == pytest.approx(1 / 3)
    assert row["sink_logit"] == pytest.approx(0, abs=1e-6)

    def planted(module, inputs, scores):  # 6 at key 0, key's own index elsewhere
        values = torch.tensor([6.0, 1, 2, 3]).expand(4, 4)
        return torch.where(scores.isinf(), scores, values)

    model.blocks[0].attn.hook_attn_scores.register_forward_hook(planted)
    (row,) = sink_figures(model, abc, tokens)
    assert row["sink_logit"] == pytest.approx((6 - 1 + 6 - 2) / 2)


class Cheat(Oracle):
    """Sees the next token, which the caller passed beside the model."""

    nexts: torch.Tensor

    def forward(self, tokens):
        seen = nn.functional.one_hot(self.nexts, self.task.d_vocab)
        law = super().forward(tokens).exp()
        return (0.9 * law + 0.1 * seen).clamp_min(1e-12).log()


def test_only_who_sees_the_next_token_beats_the_oracle(abc):
    tokens = abc.sample(200, 40, seed=3)
    honest, error = realised_excess(Oracle(abc, 1e-9), abc, tokens)
    assert abs(honest) < 1e-6
    doubtful, error = realised_excess(Oracle(abc, 0.1), abc, tokens)
    assert doubtful > 3 * error > 0
    cheat = Cheat(abc)
    cheat.nexts = tokens[:, 1:]
    below, error = realised_excess(cheat, abc, tokens)
    assert below < -3 * error
    # A divergence can't tell: it is above zero for the cheat too.
    assert evaluate(cheat, abc, tokens)["excess"] > 0


def test_its_error_is_that_of_sequences_by_hand(abc):
    tokens = abc.sample(2, 40, seed=3)
    mean, error = realised_excess(Oracle(abc, 0.5), abc, tokens)
    one, other = (
        realised_excess(Oracle(abc, 0.5), abc, torch.stack([row, row]))[0]
        for row in tokens
    )
    assert mean == pytest.approx((one + other) / 2)
    # s / sqrt(2), where s = |one - other| / sqrt(2)
    assert error == pytest.approx(abs(one - other) / 2)
    with pytest.raises(ValueError, match="1 sequences"):
        realised_excess(Oracle(abc), abc, tokens[:1])


def test_start_leaves_earlier_positions_out(task):
    """A causal model on a cut prompt gives the part that is left out."""
    config = ToyConfig(d_vocab=task.d_vocab, d_model=16, d_head=8, d_mlp=16, n_ctx=20)
    model = ToyTransformer(config).double().eval()
    tokens = task.sample(6, 21, seed=1)
    whole = evaluate(model, task, tokens)
    early = evaluate(model, task, tokens[:, :8])
    late = evaluate(model, task, tokens, start=7)
    for name in ("loss", "oracle_loss", "excess"):
        total = 7 * early[name] + 13 * late[name]
        assert 20 * whole[name] == pytest.approx(total)
    trigger = task.is_trigger(tokens[:, :-1])
    n, before = trigger.sum().item(), trigger[:, :7].sum().item()
    total = before * early["trigger_excess"] + (n - before) * late["trigger_excess"]
    assert n * whole["trigger_excess"] == pytest.approx(total)
    parts = [
        realised_excess(model, task, part, start=start)[0]
        for part, start in ((tokens, 0), (tokens[:, :8], 0), (tokens, 7))
    ]
    assert 20 * parts[0] == pytest.approx(7 * parts[1] + 13 * parts[2])
