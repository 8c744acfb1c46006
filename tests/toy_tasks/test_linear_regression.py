"""In-context regression: the task, its predictors and the heads that learn it."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import kstest
from torch import Tensor

from toy_tasks.operators import OPERATORS
from toy_tasks.regression.heads import RegressionHeads
from toy_tasks.regression.patterns import effective_step, head_patterns, task_patterns
from toy_tasks.regression.predictors import (
    bayes,
    bayes_risk,
    best_step,
    gradient_step,
    least_squares,
    step_risk,
)
from toy_tasks.regression.risks import known_predictors, predict, risks
from toy_tasks.regression.task import LinearRegression, RegressionPrompts, normals
from toy_tasks.regression.training import (
    approximate_risk,
    best_mu,
    sign_symmetric_heads,
    train_heads,
)
from toy_tasks.regression.transformer import RegressionTransformer

F64 = torch.float64
PLAIN = LinearRegression()
CORRELATED = LinearRegression.correlated(4, 0.6, noise_variance=0.2)
TASKS = LinearRegression.correlated(
    5, -0.4, supports=((0, 1, 2), (2, 3, 4), (0, 4)), noise_variance=0.3
)
EVERY = pytest.mark.parametrize("task", [PLAIN, CORRELATED, TASKS])


# ---- the task


def test_normals_are_normal_and_seeded() -> None:
    draws = normals(20_000, (3, 1))
    assert kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert torch.equal(draws[:7], normals(7, (3, 1)))
    assert not torch.equal(draws, normals(20_000, (3, 2)))
    # First of SFC64(0), by scipy's norm.ppf of its first 53 bits.
    from numpy.random import SFC64
    from scipy.stats import norm

    want = norm.ppf(((int(SFC64(0).random_raw()) >> 11) + 0.5) / 2**53)
    assert normals(1, 0).item() == pytest.approx(want, abs=1e-12)


@EVERY
def test_moments_of_prompts(task: LinearRegression) -> None:
    """x has its covariance; y its variance, also at the query; noise is not shared."""
    n = 20_000
    prompts = task.sample(n, 2, 5, F64)
    for x, y in (
        (prompts.x[:, 1], prompts.y[:, 1]),
        (prompts.x_query, prompts.y_query),
    ):
        torch.testing.assert_close(x.T @ x / n, task.sigma, atol=0.05, rtol=0)
        torch.testing.assert_close(
            y.square().mean(0), task.zero_risk(), rtol=0.06, atol=0
        )
    # y_1 y_q = w.x_1 x_q.w: given the x, its mean is x_1 . prior . x_q.
    product = prompts.y[:, 0] * prompts.y_query
    want = torch.einsum("bd,td,bd->bt", prompts.x[:, 0], task.prior, prompts.x_query)
    error = (product - want).mean(0) / (product - want).std(0) * math.sqrt(n)
    assert error.abs().max() < 4


def test_shapes_of_a_prompt() -> None:
    prompts = TASKS.sample(3, 4, 0)
    assert prompts.sequence.shape == (3, 5, 8)
    assert torch.equal(prompts.sequence[:, :4, 5:], prompts.y)
    assert torch.equal(prompts.sequence[:, 4, :5], prompts.x_query)
    assert (prompts.sequence[:, 4, 5:] == 0).all()  # the answer is not in the prompt


@EVERY
def test_task_as_json(task: LinearRegression) -> None:
    import json

    again = LinearRegression.from_json(json.loads(json.dumps(task.to_json())))
    assert again == task


def test_errors_of_the_task() -> None:
    with pytest.raises(ValueError, match="at least 1 coordinate"):
        LinearRegression(d=0)
    with pytest.raises(ValueError, match="each from 0 to 4"):
        LinearRegression(supports=((0, 5),))
    with pytest.raises(ValueError, match="no task"):
        LinearRegression(supports=())
    with pytest.raises(ValueError, match="positive definite, 2 by 2"):
        LinearRegression(2, covariance=((1.0, 2.0), (2.0, 1.0)))
    with pytest.raises(ValueError, match="3 by 3"):
        LinearRegression(3, covariance=((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="at least 1 of each"):
        PLAIN.sample(4, 0, 0)


# ---- predictors


def by_conditioning(
    task: LinearRegression, prompts: RegressionPrompts
) -> tuple[Tensor, Tensor]:
    """Mean and variance of y_query given the ys, all being jointly Gaussian."""
    x = torch.cat([prompts.x, prompts.x_query[:, None]], dim=1)
    mean, variance = [], []
    for one in range(task.n_tasks):
        joint = x * task.prior[one] @ x.transpose(1, 2)
        joint = joint + task.noise_variance * torch.eye(x.shape[1], dtype=F64)
        inner, cross = joint[:, :-1, :-1], joint[:, :-1, -1]
        weights = torch.linalg.pinv(inner, hermitian=True) @ cross[..., None]
        mean.append((weights[..., 0] * prompts.y[..., one]).sum(1))
        variance.append(joint[:, -1, -1] - (weights[..., 0] * cross).sum(1))
    return torch.stack(mean, 1), torch.stack(variance, 1)


@pytest.mark.parametrize("n_examples", [2, 9])
@pytest.mark.parametrize(
    "task", [PLAIN, CORRELATED, TASKS, LinearRegression(4, noise_variance=0.0)]
)
def test_bayes_is_gaussian_conditioning(
    task: LinearRegression, n_examples: int
) -> None:
    prompts = task.sample(6, n_examples, 2, F64)
    mean, variance = by_conditioning(task, prompts)
    torch.testing.assert_close(bayes(task, prompts), mean)
    torch.testing.assert_close(
        bayes_risk(task, prompts), variance, atol=1e-9, rtol=1e-7
    )


@EVERY
def test_no_predictor_beats_bayes_and_its_risk_is_as_computed(
    task: LinearRegression,
) -> None:
    prompts = task.sample(4000, 8, 1, F64)
    rows = risks(task, prompts, known_predictors(task, prompts, trained_at=20))
    by = {row["predictor"]: row for row in rows}
    ours = by.pop("Bayes (ridge)")
    exact = bayes_risk(task, prompts).mean().item()
    assert abs(ours["risk"] - exact) < 4 * ours["risk_se"]
    for row in by.values():
        assert row["above_bayes"] > -3 * row["above_bayes_se"]
        # Both estimate the risk above Bayes: true of the posterior mean alone.
        assert abs(row["above_bayes"] - row["excess"]) < 4 * row["above_bayes_se"]


def test_a_leak_is_noticed() -> None:
    prompts = PLAIN.sample(500, 20, 1, F64)
    seen = 0.9 * bayes(PLAIN, prompts) + 0.1 * prompts.y_query
    (row,) = risks(PLAIN, prompts, {"leak": seen})
    assert row["above_bayes"] < -3 * row["above_bayes_se"]


def test_least_squares_is_exact_without_noise() -> None:
    task = LinearRegression(4, noise_variance=0.0)
    prompts = task.sample(5, 6, 0, F64)
    torch.testing.assert_close(least_squares(prompts), prompts.y_query)


@EVERY
@pytest.mark.parametrize("debiased", [False, True])
def test_risk_of_a_step_is_what_sampling_finds(
    task: LinearRegression, debiased: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    step = torch.randn(task.n_tasks, task.d, task.d, generator=generator, dtype=F64)
    step = 0.2 * step + 0.6 * torch.eye(task.d, dtype=F64)
    prompts = task.sample(40_000, 6, 8, F64)
    error = (gradient_step(prompts, step, debiased) - prompts.y_query).square()
    se = error.std(0) / math.sqrt(len(error))
    off = (error.mean(0) - step_risk(task, 6, step, debiased)) / se
    assert off.abs().max() < 4


@EVERY
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_best_step_is_the_best(
    task: LinearRegression, debiased: bool, preconditioned: bool
) -> None:
    best = best_step(task, 12, debiased, preconditioned)
    lowest = step_risk(task, 12, best, debiased)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(best.shape, generator=generator, dtype=F64)
        if not preconditioned:
            other = other[:, :1, :1] * torch.eye(task.d, dtype=F64)
        for sign in (-1e-3, 1e-3):
            assert (step_risk(task, 12, best + sign * other, debiased) > lowest).all()


def test_closed_forms_of_the_best_step() -> None:
    """Those of the docstring, worked out by hand: d = 5, s = 0.1, L = 40."""
    for debiased, size in ((False, 40 / 46.5), (True, 40 / 45.5)):
        for preconditioned in (False, True):
            step = best_step(PLAIN, 40, debiased, preconditioned)[0]
            torch.testing.assert_close(step, size * torch.eye(5, dtype=F64))
    risk = step_risk(PLAIN, 40, best_step(PLAIN, 40))
    assert risk.item() == pytest.approx(1.1 - 40 / 46.5)
    sigma, d, s, n = CORRELATED.sigma, 4, 0.2, 10
    for debiased in (False, True):
        ridge = (4.0 + d * s) / n * torch.eye(d, dtype=F64)  # tr sigma = 4
        want = torch.linalg.inv((1 + (not debiased) / n) * sigma + ridge)
        got = best_step(CORRELATED, n, debiased, preconditioned=True)[0]
        torch.testing.assert_close(got, want)


def test_a_debiased_step_ignores_constants() -> None:
    prompts = TASKS.sample(4, 7, 0, F64)
    moved = RegressionPrompts(
        prompts.x + 3, prompts.y - 2, prompts.x_query, prompts.y_query
    )
    step = best_step(TASKS, 7)
    one, two = (gradient_step(p, step, debiased=True) for p in (prompts, moved))
    torch.testing.assert_close(one, two)
    assert (gradient_step(prompts, step) - gradient_step(moved, step)).abs().max() > 1


# ---- heads


@pytest.mark.parametrize("kind", ["softmax", "linear", "linear-mean"])
def test_heads_in_plain_loops(kind: str) -> None:
    heads = RegressionHeads(6, 3, 2, seeds=(0, 4), kind=kind, n_examples=11).double()
    prompts = LinearRegression(4, supports=((0, 1), (2, 3))).sample(3, 5, 0, F64)
    got = predict(heads, prompts)
    scale = math.sqrt(6)
    for model in range(2):
        for row in range(3):
            z, query = prompts.inputs[row], prompts.query[row]
            want = torch.zeros(2, dtype=F64)
            for head in range(3):
                w_q, w_k, w_v, w_o = (
                    getattr(heads, f"W_{n}")[model, head].detach() for n in "QKVO"
                )
                score = torch.stack([(query @ w_q) @ (k @ w_k) / scale for k in z])
                if kind == "softmax":
                    weight = score.exp() / score.exp().sum()
                else:
                    weight = score / (11 if kind == "linear" else 5)
                for one, k in zip(weight, z, strict=True):
                    want += one * (k @ w_v @ w_o)
            torch.testing.assert_close(got[model, row], want)


def test_planted_heads_have_the_matrices_given() -> None:
    generator = torch.Generator().manual_seed(0)
    kq = torch.randn(2, 4, 4, generator=generator, dtype=F64)
    ov = torch.randn(2, 4, 1, generator=generator, dtype=F64)
    heads = RegressionHeads.planted(kq, ov)
    torch.testing.assert_close(heads.KQ[0].detach(), kq)
    torch.testing.assert_close(heads.OV[0].detach(), ov)


def test_a_sign_symmetric_pair_is_a_debiased_step() -> None:
    """For small omega, of size 2 mu omega; the difference falls with omega squared."""
    prompts = PLAIN.sample(50, 40, 0, F64)
    step = 0.8 * torch.eye(5, dtype=F64)[None]
    want = gradient_step(prompts, step, debiased=True)
    gaps = []
    for omega in (0.02, 0.01):
        heads = sign_symmetric_heads(omega, 0.4 / omega, 5)
        gaps.append((predict(heads, prompts)[0] - want).abs().max().item())
    assert gaps[0] < 0.01
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)


def test_mu_in_closed_form_is_the_least_approximate_risk() -> None:
    for omega in (0.05, 0.2, 0.5):

        def risk(mu: float, omega: float = omega) -> float:
            return approximate_risk(
                torch.tensor([omega, -omega], dtype=F64),
                torch.tensor([mu, -mu], dtype=F64),
                5,
                40,
                0.1,
            )

        found = minimize_scalar(risk, bounds=(0, 100), method="bounded")
        assert best_mu(omega, 5, 40, 0.1) == pytest.approx(found.x, rel=1e-4)
    # omega to 0: the debiased step of size 1 / (1 + d (1 + s) / L).
    assert 2 * 1e-4 * best_mu(1e-4, 5, 40, 0.1) == pytest.approx(40 / 45.5)


@pytest.mark.parametrize("signs", [(1,), (1, -1), (1, 1, -1)])
@pytest.mark.matrix
def test_the_approximate_risk_is_that_of_long_prompts(signs: tuple[int, ...]) -> None:
    """At 600 examples the error of order 1/L is under 0.01."""
    omega = 0.3 * torch.tensor(signs, dtype=F64)
    mu = torch.linspace(1.2, 1.6, len(signs), dtype=F64) * omega.sign()
    kq = (
        torch.diag_embed(torch.cat([torch.ones(5), torch.zeros(1)]).to(F64))
        * omega[:, None, None]
    )
    ov = torch.zeros(len(signs), 6, 1, dtype=F64)
    ov[:, 5, 0] = mu
    prompts = PLAIN.sample(1500, 600, 0, F64)
    found = predict(RegressionHeads.planted(kq, ov), prompts)[0]
    error = (found - bayes(PLAIN, prompts)).square() + bayes_risk(PLAIN, prompts)
    want = approximate_risk(omega, mu, 5, 600, 0.1)
    assert error.mean().item() == pytest.approx(want, abs=0.01)


def test_errors_of_the_heads() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        RegressionHeads(6, 2, seeds=())
    with pytest.raises(ValueError, match="'linear-mean'"):
        RegressionHeads(6, 2, kind="quadratic")
    with pytest.raises(ValueError, match="at least 1 of each"):
        train_heads(PLAIN, steps=0)
    with pytest.raises(ValueError, match="1 to 5"):
        head_patterns(RegressionHeads(6, 2), 6)


# ---- training


@pytest.mark.matrix
def test_a_seed_trains_the_same_alone() -> None:
    options = {"steps": 15, "batch": 8, "n_examples": 10, "progress": False}
    both = train_heads(PLAIN, 2, seeds=(3, 5), **options)
    alone = train_heads(PLAIN, 2, seeds=(5,), **options)
    for name, weight in alone.heads.named_parameters():
        torch.testing.assert_close(weight[0], both.heads.get_parameter(name)[1])
        start = both.initial.get_parameter(name)[1]
        assert not torch.equal(start, weight[0])
    again = train_heads(PLAIN, 2, seeds=(3, 5), **options)
    assert torch.equal(again.losses, both.losses)
    assert again.steps == [0, 14]


def test_every_seed_and_step_has_prompts_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, draw = [], LinearRegression.sample

    def sample(self: LinearRegression, batch: int, n: int, seed: tuple[int, int]):
        seen.append(seed)
        return draw(self, batch, n, seed)

    monkeypatch.setattr(LinearRegression, "sample", sample)
    train_heads(PLAIN, 1, seeds=(3, 5), steps=2, batch=2, n_examples=4, progress=False)
    assert sorted(seen) == [(3, 0), (3, 1), (5, 0), (5, 1)]


@pytest.mark.matrix
def test_trained_heads_are_the_closed_form() -> None:
    run = train_heads(PLAIN, 2, seeds=(0, 1), steps=800, lr=2e-2, progress=False)
    found = head_patterns(run.heads, 5)
    assert (found.omega.prod(1) < 0).all()  # seeds whose heads part
    whole = found.of_model()
    assert whole["kq_diagonal"].min() > 0.75
    assert whole["kq_spread"].max() < 0.15
    assert whole["ov_last"].min() > 0.9
    assert whole["ov_sum"].max() < 0.1
    for omega, mu in zip(found.omega, found.mu[..., 0], strict=True):
        want = best_mu(omega.abs().mean().item(), 5, 40, 0.1)
        assert mu.abs().mean().item() == pytest.approx(want, rel=0.1)
    start = head_patterns(run.initial, 5).of_model()
    assert start["kq_diagonal"].max() < 0.35
    assert start["ov_last"].max() < 0.6


# ---- patterns


def test_patterns_by_hand() -> None:
    """d = 1: keys and queries have two entries, and the query's second is 0."""
    kq = torch.tensor([[[1.0, 9.0], [3.0, 9.0]], [[-2.0, 9.0], [0.0, 9.0]]], dtype=F64)
    ov = torch.tensor([[[1.0], [3.0]], [[0.0], [-1.0]]], dtype=F64)
    found = head_patterns(RegressionHeads.planted(kq, ov), 1)
    assert found.omega.tolist() == [pytest.approx([1, -2])]
    assert found.mu.flatten().tolist() == pytest.approx([3, -1])
    assert found.kq_diagonal.tolist() == [pytest.approx([1 / 4, 1])]
    assert found.ov_last.tolist() == [pytest.approx([3 / 4, 1])]
    assert found.ov_sum.tolist() == pytest.approx([2 / 4])
    size = 10.0, 2.0  # sqrt(1 + 9) sqrt(1 + 9), and 2 * 1
    assert found.weight.tolist() == [pytest.approx([s / 12 for s in size])]
    mean = (10 * 1 + 2 * 2) / 12
    spread = math.sqrt((10 * (1 - mean) ** 2 + 2 * (2 - mean) ** 2) / 12)
    assert found.omega_spread.tolist() == pytest.approx([spread / mean])
    assert found.omega_sum.tolist() == pytest.approx([(10 * 1 - 2 * 2) / 14])
    model = found.of_model()
    assert model["ov_last"].tolist() == pytest.approx([(10 * 3 / 4 + 2) / 12])


def test_patterns_of_a_diagonal() -> None:
    kq = torch.diag(torch.tensor([1.0, 1.0, -3.0, 5.0, 0.0], dtype=F64))[None]
    ov = torch.ones(1, 5, 1, dtype=F64)
    found = head_patterns(RegressionHeads.planted(kq, ov), 4)
    assert found.kq_diagonal.item() == pytest.approx(1)
    assert found.kq_one_sign.item() == pytest.approx(3 / 4)
    assert found.kq_spread.item() == pytest.approx(math.sqrt(8))  # mean 1, var 8
    assert found.ov_last.item() == pytest.approx(1 / 5)
    ideal = head_patterns(sign_symmetric_heads(0.2, 2.0, 5), 5).of_model()
    want = {"kq_diagonal": 1, "kq_spread": 0, "kq_one_sign": 1, "ov_last": 1}
    want |= {"ov_sum": 0, "omega_spread": 0, "omega_sum": 0}
    assert {n: v.item() for n, v in ideal.items()} == pytest.approx(want, abs=1e-9)


def test_the_effective_step_is_what_small_heads_do() -> None:
    """KQ and OV that read x and y apart: a debiased step for every pair of tasks."""
    task = LinearRegression(3, supports=((0, 1), (2,)))
    generator = torch.Generator().manual_seed(2)
    kq = torch.zeros(4, 5, 5, dtype=F64)
    kq[:, :3, :3] = 1e-4 * torch.randn(4, 3, 3, generator=generator, dtype=F64)
    ov = torch.zeros(4, 5, 2, dtype=F64)
    ov[:, 3:] = 1e4 * torch.randn(4, 2, 2, generator=generator, dtype=F64)
    ov[3] = -ov[:3].sum(0)  # zero-sum, or the mean of y would be added
    heads = RegressionHeads.planted(kq, ov)
    prompts = task.sample(20, 9, 0, F64)
    step = effective_step(heads, 3)[0]
    want = torch.zeros(20, 2, dtype=F64)
    for source in range(2):
        one = RegressionPrompts(
            prompts.x, prompts.y[..., [source] * 2], prompts.x_query, prompts.y_query
        )
        want += gradient_step(one, step[:, source], debiased=True)
    torch.testing.assert_close(predict(heads, prompts)[0], want, rtol=1e-2, atol=1e-3)


def test_heads_shared_among_two_tasks() -> None:
    """Separate pairs, one shared pair, and three heads at 120 degrees."""
    task = LinearRegression(2, supports=((0,), (1,)), noise_variance=0.1)

    def plant(directions: list[tuple[float, float]]) -> RegressionHeads:
        kq = torch.zeros(len(directions), 4, 4, dtype=F64)
        ov = torch.zeros(len(directions), 4, 2, dtype=F64)
        for head, pair in enumerate(directions):
            for one in range(2):
                kq[head, one, one] = ov[head, 2 + one, one] = pair[one]
        return RegressionHeads.planted(kq, ov)

    apart = task_patterns(plant([(1, 0), (-1, 0), (0, 1), (0, -1)]), task)
    assert (apart.one_task.item(), apart.interference.item()) == (1, 0)
    shared = task_patterns(plant([(1, 1), (-1, -1)]), task)
    assert shared.one_task.item() == pytest.approx(1 / 2)
    assert shared.interference.item() == pytest.approx(1)
    angles = [math.radians(a) for a in (45, 165, 285)]
    three = task_patterns(plant([(math.cos(a), math.sin(a)) for a in angles]), task)
    # |OV| to the tasks: cosines of 45 and 45, twice of 15 and 75 degrees.
    cos = [math.cos(math.radians(a)) for a in (45, 15, 75)]
    want = (cos[0] + 2 * cos[1]) / (2 * cos[0] + 2 * (cos[1] + cos[2]))
    assert three.one_task.item() == pytest.approx(want)
    assert three.interference.item() == pytest.approx(0, abs=1e-7)
    assert three.part.sum().item() == pytest.approx(1)


# ---- the toy transformer on the same task

CONTENT_FREE = ("uniform", "static", "static-random", "position")
# A rotation by about 45 degrees halves what earlier keys got: it must learn where
# keys stand, and needs two layers and positions.
ROTATIONS = {"unitary-givens": {"positions": "learned", "n_layers": 2}}
SMALL = LinearRegression(d=2, noise_variance=0.01)
LENGTH = {"sinkhorn": 7, "sinkhorn-targets": 7, "unitary-qr": 7, "unitary-givens": 4}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.first_case
@pytest.mark.some_cases(10)
def test_every_operator_learns_to_regress(name: str) -> None:
    n_examples = LENGTH.get(name, 20)
    model = RegressionTransformer(
        SMALL.d_in,
        OPERATORS[name],
        n_heads=4,
        n_ctx=n_examples + 1,
        **ROTATIONS.get(name, {}),
    )
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for step in range(300 if name in ROTATIONS else 80):
        loss = model.update(optimizer, SMALL.sample(64, n_examples, (0, step)))
        assert loss.isfinite()
    model.eval()
    test = SMALL.sample(1000, n_examples, 2**31)
    with torch.no_grad():
        error = (model(test.sequence) - test.y_query).square()[:, 0]
    gain = test.y_query[:, 0].square() - error
    gain, se = gain.mean().item(), gain.std().item() / math.sqrt(1000)
    if name in CONTENT_FREE:
        assert gain < 3 * se  # a linear function of the prompt: see the next test
        return
    assert gain > 0.15
    assert gain > 3 * se
    still = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and torch.equal(p, before[n])
    ]
    if name == "full-or-sparse":  # its window may be the whole prompt
        still = [n for n in still if "carrier" not in n]
    assert not still, still


@pytest.mark.parametrize("name", CONTENT_FREE)
def test_content_free_attention_is_linear_in_the_prompt(name: str) -> None:
    """Then E(prediction * y_query) = 0, since w is as likely as -w: 0 is as good."""
    model = RegressionTransformer(3, OPERATORS[name], n_layers=2, n_ctx=9).double()
    one, two = (SMALL.sample(4, 8, seed, F64).sequence for seed in (0, 1))
    with torch.no_grad():
        torch.testing.assert_close(
            model(2 * one - 3 * two), 2 * model(one) - 3 * model(two)
        )


def test_columns_as_one_hot_tokens() -> None:
    """Unit vectors give what the toy transformer gives for tokens."""
    from toy_tasks import ToyTransformer

    model = RegressionTransformer(
        5, None, 2, n_ctx=6, positions="learned", norm="layer", mlp_layers=None, n_out=2
    )
    tokens = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])
    toy = ToyTransformer(model.config)
    toy.load_state_dict(model.state_dict())
    with torch.no_grad():
        got = model(torch.nn.functional.one_hot(tokens, 5).float())
        torch.testing.assert_close(got, toy(tokens)[:, -1, -2:])


def test_errors_of_the_transformer() -> None:
    with pytest.raises(ValueError, match=r"task\.n_tasks"):
        RegressionTransformer(3, n_out=3)
    model = RegressionTransformer(3, n_ctx=4)
    with pytest.raises(ValueError, match="positions 0 to 3"):
        model(SMALL.sample(2, 4, 0).sequence)
