"""Reduced dynamics: gradients by autograd, a conservation law, power laws, a toy."""

import numpy as np
import pytest
import torch

from toy_tasks import BigramBackcopy, ToyConfig, ToyTransformer
from toy_tasks.dynamics.model import SinkModel, resting_alpha
from toy_tasks.dynamics.reduced import reduced_dynamics, slopes
from toy_tasks.dynamics.toy import (
    random_table,
    random_task,
    sink_parameters,
    sink_toy,
    task_queries,
    train_sink,
)

UNIFORM = np.full(10, 0.1)


@pytest.fixture
def setting():
    """Odd sizes, uneven shares, a table with a zero, and a state far from zero."""
    random = np.random.default_rng(3)
    table = random.dirichlet(np.ones(5), size=4)
    table[1, 2] = 0
    table /= table.sum(1, keepdims=True)
    others = 3 * random.normal(size=(4, 5))
    model = SinkModel(table, random.dirichlet(np.ones(4)), 7.0, others)
    return model, random.normal(size=4), random.normal(size=5)


def in_torch(model, state):
    """The loss as the papers write it, from softmax and KL alone."""
    table, others = torch.tensor(model.table), torch.tensor(model.others)
    alpha, beta = state[: len(table)], state[len(table) :]
    w = (alpha.exp() / (alpha.exp() + model.weight))[:, None]
    log_law = (table.log() + w * beta + (1 - w) * others).log_softmax(-1)
    kl = torch.where(table > 0, table * (table.log() - log_law), 0).sum(-1)
    return torch.tensor(model.pi) @ kl


def test_loss_gradient_and_hessian_are_autograd_s(setting):
    model, alpha, beta = setting
    model = SinkModel(np.maximum(model.table, 1e-30), *list(vars(model).values())[1:])
    state = torch.tensor(np.concatenate([alpha, beta]), requires_grad=True)
    loss = in_torch(model, state)
    assert model.loss(alpha, beta) == pytest.approx(loss.item(), rel=1e-12)
    (wanted,) = torch.autograd.grad(loss, state)
    got = np.concatenate(model.gradient(alpha, beta))
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-13)
    bent = torch.autograd.functional.hessian(
        lambda s: in_torch(model, s), state.detach()
    )
    np.testing.assert_allclose(model.hessian(alpha, beta), bent.numpy(), atol=1e-12)
    largest = torch.linalg.eigvalsh(bent)[-1].item()
    assert model.curvature(alpha, beta) == pytest.approx(largest, rel=1e-10)


def test_gradient_is_the_difference_quotient(setting):
    model, alpha, beta = setting
    by_alpha, by_beta = model.gradient(alpha, beta)
    for i in range(len(alpha)):
        h = 1e-6 * np.eye(len(alpha))[i]
        quotient = (model.loss(alpha + h, beta) - model.loss(alpha - h, beta)) / 2e-6
        assert by_alpha[i] == pytest.approx(quotient, abs=1e-8)
    for i in range(len(beta)):
        h = 1e-6 * np.eye(len(beta))[i]
        quotient = (model.loss(alpha, beta + h) - model.loss(alpha, beta - h)) / 2e-6
        assert by_beta[i] == pytest.approx(quotient, abs=1e-8)


def test_one_query_and_two_tokens_by_hand():
    # W = 1, alpha = 0: w = 1/2. beta = 0, o = (2 log 3, 0): the output is (log 3, 0)
    # and a fair coin is predicted (3/4, 1/4). KL = -log(2 * 3/4) / 2 - log(2 / 4) / 2.
    model = SinkModel(
        np.array([[0.5, 0.5]]), np.ones(1), 1.0, np.array([[2 * np.log(3), 0.0]])
    )
    alpha, beta = np.zeros(1), np.zeros(2)
    assert model.loss(alpha, beta) == pytest.approx(np.log(2) - np.log(3) / 2)
    by_alpha, by_beta = model.gradient(alpha, beta)
    np.testing.assert_allclose(by_beta, [1 / 8, -1 / 8])  # w (3/4 - 1/2)
    # w (1 - w) (1/4, -1/4) . (beta - o) = -log(3) / 8
    np.testing.assert_allclose(by_alpha, [-np.log(3) / 8])


def test_small_losses_keep_their_digits():
    # Output 1e-6 x on a fair coin: KL = x^2 / 2 times its variance, 1/4.
    model = SinkModel(np.array([[0.5, 0.5]]), np.ones(1), 1.0, np.array([[2e-6, 0.0]]))
    assert model.loss(np.zeros(1), np.zeros(2)) == pytest.approx(1.25e-13, rel=1e-4)


def test_power_laws_late():
    flow = reduced_dynamics(random_table(10, 1), UNIFORM, until=1e6, per_octave=4)
    found = flow.local_slope()
    assert found.alpha == pytest.approx(0.5, abs=0.002)
    assert found.beta == pytest.approx(-0.5, abs=0.005)
    assert found.loss == pytest.approx(-1.0, abs=0.002)
    assert flow.time[-1] == 1e6 and flow.time[0] >= 1
    assert (np.diff(flow.loss) < 0).all()


def test_descent_is_the_flow_and_gets_nearer_with_its_step():
    table = random_table(10, 0)
    apart = []
    for step in (4.0, 1.0):
        descent = reduced_dynamics(table, UNIFORM, until=1024.0, step=step)
        flow = reduced_dynamics(table, UNIFORM, until=1024.0)
        assert descent.time[-1] == flow.time[-1] == 1024
        apart.append(abs(descent.mean_alpha[-1] - flow.mean_alpha[-1]))
        np.testing.assert_allclose(descent.beta[-1], flow.beta[-1], rtol=0.05)
    assert apart[0] < 0.05
    assert apart[1] == pytest.approx(apart[0] / 4, rel=0.3)  # first order in the step


def test_a_step_above_the_limit_is_refused_and_the_advice_works():
    table = random_table(10, 0)
    limit = reduced_dynamics(table, UNIFORM, until=500.0).stability_limit
    with pytest.raises(ValueError, match=r"stable below .* Pass a positive step"):
        reduced_dynamics(table, UNIFORM, until=500.0, step=1.1 * limit)
    reduced_dynamics(table, UNIFORM, until=500.0, step=0.9 * limit)


def test_contexts_that_the_value_cancels_end_the_growth():
    random = np.random.default_rng(1)
    write = random.normal(size=10) + 5.0  # a shift of all tokens says nothing
    others = np.tile(write, (10, 1))
    flow = reduced_dynamics(
        random_table(10, 4), random.dirichlet(np.ones(10)), others=others, until=1e5
    )
    rest = resting_alpha(10, 20.0, write)
    np.testing.assert_allclose(flow.alpha[-1], rest, atol=1e-5)
    w = 1 / (1 + 20 * np.exp(-rest))
    centred = write - write.mean()
    np.testing.assert_allclose(flow.beta[-1], -(1 - w) / w * centred, atol=1e-5)
    # The law that it follows from, along the whole path.
    apart = ((flow.beta - centred) ** 2).sum(1) / 2
    kept = apart - (np.exp(flow.alpha) / 20 + flow.alpha).sum(1)
    np.testing.assert_allclose(kept, kept[0], rtol=1e-6)


def test_slopes_of_exact_powers():
    time = np.geomspace(10, 1000, 30)
    found = slopes(time, 3 + 0.7 * np.log(time), time**-0.4, 5 / time**2, 100.0, 1000.0)
    assert vars(found) == pytest.approx({"alpha": 0.7, "beta": -0.4, "loss": -2.0})
    with pytest.raises(ValueError, match="needs 3"):
        slopes(time, time, time, time, 990.0, 1000.0)


def test_bad_settings_are_refused():
    table = random_table(3, 0)
    with pytest.raises(ValueError, match="Divide by its sums"):
        reduced_dynamics(2 * table, np.full(3, 1 / 3))
    with pytest.raises(ValueError, match="Pass what the other tokens write"):
        reduced_dynamics(table[:2], np.full(2, 0.5))
    with pytest.raises(ValueError, match="weigh more than 0"):
        reduced_dynamics(table, np.full(3, 1 / 3), weight=0.0)


@pytest.mark.parametrize("copy", [1.0, 0.5])
def test_shares_of_queries_are_those_of_long_sequences(copy):
    task = random_task(0)
    task = BigramBackcopy(
        task.vocab, task.table, task.marginal, task.triggers, copy_probability=copy
    )
    table, pi, tokens = task_queries(task)
    drawn = task.sample(400, 500, 0)[:, 50:]
    counts = torch.bincount(drawn.flatten(), minlength=task.d_vocab)[tokens].double()
    np.testing.assert_allclose(pi, (counts / counts.sum()).numpy(), atol=0.005)
    assert tokens.tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(table, task.table[tokens].numpy())


def test_the_planted_toy_solves_the_task_once_its_sink_is_strong():
    task = random_task(1)
    model = sink_toy(task)
    with torch.no_grad():  # weight 1 on <s> for ordinary queries, value 0
        ordinary = [*range(2, 8), task.bos]
        model.blocks[0].attn.W_Q[0, ordinary, model.config.n_ctx] = 40.0
    tokens = task.sample(64, 12, 0)
    law = task.oracle_logprobs(tokens).exp()
    kl = torch.special.xlogy(law, law) - law * model(tokens).log_softmax(-1)
    assert 0 <= kl.sum(-1).max().item() < 5e-3


def test_training_moves_alpha_and_beta_by_their_own_gradients_alone():
    task = random_task(1)
    model, before = sink_toy(task), sink_toy(task)
    train_sink(model, task, steps=1, lr=0.5, batch=2, seed=3)
    alpha, beta = sink_parameters(model, task)

    # The same gradient from a formula of alpha and beta, without the transformer.
    tokens = task.sample(2, 12, 3)
    law = task.oracle_logprobs(tokens).exp()
    a = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    total = 0
    for row, laws in zip(tokens, law, strict=True):
        for n in range(12):
            scores = torch.zeros(n + 1, dtype=torch.float64)
            if n:
                scores[n - 1] = 4.0
            scores = torch.cat([scores[:1] + a[row[n]], scores[1:]])
            values = 12 * torch.eye(9, dtype=torch.float64)[row[: n + 1]]
            values = torch.cat([b[None], values[1:]])
            base = task.table[row[n]] if n else task.first_law
            direct = base.clamp_min(1e-12).log()
            if task.is_trigger(row[n]):
                direct = (torch.arange(9) < 8).double().clamp_min(1e-12).log()
            logits = direct + scores.softmax(0) @ values
            total = total - (laws[n] * logits.log_softmax(0)).sum()
    by_a, by_b = torch.autograd.grad(total / 24, (a, b))
    torch.testing.assert_close(alpha, -0.5 * by_a, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(beta, -0.5 * by_b, atol=1e-12, rtol=1e-9)
    moved = {
        name: int((p != q).sum())
        for (name, p), (_, q) in zip(
            model.named_parameters(), before.named_parameters(), strict=True
        )
    }
    assert {n for n, k in moved.items() if k} == {
        "blocks.0.attn.W_Q",
        "blocks.0.attn.W_V",
    }
    assert moved["blocks.0.attn.W_Q"] <= 9 and moved["blocks.0.attn.W_V"] <= 9


def test_train_sink_trains_another_toy_and_calls_back():
    task = random_task(0)
    config = ToyConfig(d_vocab=9, d_model=16, d_head=8, d_mlp=16, n_ctx=8)
    seen = []
    losses = train_sink(
        ToyTransformer(config),
        task,
        steps=20,
        lr=0.1,
        batch=8,
        callback=lambda step, model, task: seen.append(step),
        callback_steps=(0, 5, 20),
    )
    assert seen == [0, 5, 20]
    assert losses.shape == (20,) and losses[-1] < losses[0]
