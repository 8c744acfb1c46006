"""What holds for every operator of the catalogue."""

import math

import pytest
import torch

import mechsink as ms
from mechsink.models.selfcheck import selfcheck
from mechsink.models.toy import ToyModel
from mechsink.sinks.scores import sink_scores
from mechsink.sites import Site
from tests.toy_tasks.operators.layer import draw, make, show
from toy_tasks import (
    BigramBackcopy,
    Preset,
    Sums,
    ToyConfig,
    ToyTransformer,
    realised_excess,
    train,
)
from toy_tasks.operators import OPERATORS, FullOrSparse, Operator
from toy_tasks.training import update

EVERY = pytest.mark.parametrize("name", OPERATORS)
TOKENS = torch.randint(1, 20, (3, 24), generator=torch.Generator().manual_seed(0))
CONTENT_FREE = ("uniform", "static", "static-random", "position")
HEADS = {"moh": 4, "moh-norm": 4, "moh-sinkhorn": 4}


def toy(name: str, n_ctx: int = 24, d_vocab: int = 20) -> ToyTransformer:
    return ToyTransformer(config(name, n_ctx, d_vocab))


def config(name: str, n_ctx: int = 24, d_vocab: int = 20) -> ToyConfig:
    return ToyConfig(
        d_vocab=d_vocab,
        n_layers=2,
        n_heads=HEADS.get(name, 2),
        d_model=16,
        d_head=8,
        d_mlp=32,
        n_ctx=n_ctx,
        operators=OPERATORS[name],
    )


@EVERY
def test_a_config_with_it_is_saved_and_read(name: str) -> None:
    settings = config(name)
    assert ToyConfig.from_json(settings.to_json()) == settings


@EVERY
@pytest.mark.first_case
def test_later_tokens_change_nothing_before_them(name: str) -> None:
    model = toy(name).double().eval()
    # Weights far from their start, where gates are open and routers choose.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with torch.no_grad():
        base = model(TOKENS)
        moved = []
        for j in (1, 7, 8, 15, 16, 23):
            other = TOKENS.clone()
            other[:, j:] = (other[:, j:] + 7) % 19 + 1
            moved.append((model(other) - base)[:, :j].abs().max().item())
    if OPERATORS[name].is_causal:
        assert max(moved) < 1e-12
    else:
        assert max(moved) > 1e-6


@EVERY
@pytest.mark.first_case
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    layer = make(OPERATORS[name], n_heads=HEADS.get(name, 2))
    layer.eval()
    x = draw(n_pos=9, batch=1).requires_grad_()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    if name == "moh-norm":  # straight through: not the gradient of what it computes
        parameters = [p for n, p in layer.named_parameters() if "W_V" in n]
        x = x.detach()

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return layer(x)

    assert torch.autograd.gradcheck(run, (x, *parameters), atol=1e-6, fast_mode=True)


BALANCED = ("sinkhorn", "unitary-qr", "unitary-givens")  # 1,024 prefixes: minutes
LONG = [
    pytest.param(n, marks=pytest.mark.slow) if n in BALANCED else n for n in OPERATORS
]


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.matrix
def test_a_prompt_of_1024_tokens(name: str, dtype: torch.dtype) -> None:
    model = toy(name, n_ctx=1024).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (1, 1024), generator=generator)
    with torch.no_grad():
        logits = model(tokens)
    assert logits.isfinite().all()
    assert logits.float().std() > 0.01


@EVERY
@pytest.mark.first_case
def test_z_is_the_pattern_times_the_values(name: str) -> None:
    operator = OPERATORS[name]
    layer = make(operator, n_heads=HEADS.get(name, 2))
    shown = show(layer, draw())
    if operator.rows_sum_to_1:
        ones = torch.ones(1, dtype=torch.float64)
        torch.testing.assert_close(
            shown.pattern.sum(-1), ones.expand(shown.pattern.shape[:-1])
        )
    gated = name.startswith(("gate", "moh", "v-bias")) and name != "gate-out"
    if gated or name in ("kv-bias", "sink-token"):
        return  # z or v is gated, or values stand in slots
    torch.testing.assert_close(shown.pattern @ shown.v, shown.z)


@EVERY
@pytest.mark.first_case
def test_a_mechsink_model_with_it_passes_its_self_check(name: str) -> None:
    assert selfcheck(ToyModel(toy(name).eval())).ok


@EVERY
@pytest.mark.matrix
@pytest.mark.some_cases(10)
def test_it_learns(name: str, task: BigramBackcopy) -> None:
    """Thirty steps lower the loss on Bigram-Backcopy and on sums, and move all."""
    for some, length in ((task, 24), (Sums(10), 7)):
        model = toy(name, n_ctx=length, d_vocab=some.d_vocab)
        before = {n: p.clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        losses = [
            update(
                model,
                optimizer,
                some.sequences(32, length, (0, step), torch.device("cpu")),
                n_targets=some.n_targets,
            ).item()
            for step in range(30)
        ]
        assert math.isfinite(losses[-1])
        assert losses[-1] < losses[0] - 0.1
        still = [
            n
            for n, p in model.named_parameters()
            if p.requires_grad and torch.equal(p, before[n])
        ]
        if name == "full-or-sparse" and length < 16:  # full and sparse are the same
            still = [n for n in still if "carrier" not in n]
        if name in CONTENT_FREE:
            still = [n for n in still if not n.endswith(("W_Q", "W_K"))]
        assert not still, still


@EVERY
@pytest.mark.slow
def test_none_beats_the_oracle_but_who_sees_the_future(
    name: str, task: BigramBackcopy
) -> None:
    """Trained, the losses on unseen tokens stay above the oracle's, -3 errors."""
    model = toy(name, d_vocab=task.d_vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for step in range(400):
        update(model.train(), optimizer, task.sample(32, 25, (0, step)))
    mean, error = realised_excess(model.eval(), task, task.sample(512, 25, 2**31))
    if name == "bidirectional":  # looks at the very next token: the check can fail
        assert mean < -3 * error
    elif OPERATORS[name].is_causal:
        assert mean > -3 * error


@pytest.fixture(scope="module")
def task() -> BigramBackcopy:
    return BigramBackcopy.from_text("the cat sat on the mat and ate the rat " * 40)


@pytest.mark.matrix
def test_a_run_with_an_operator_resumes_bit_for_bit(
    task: BigramBackcopy, tmp_path: object
) -> None:
    from pathlib import Path

    root = Path(str(tmp_path))
    settings = config("full-or-sparse", 16, 0)
    preset = Preset("x", settings, steps=8, batch=4, lr=1e-3, save_every=4)
    whole = train(task, preset, root / "whole").model()

    class Kill(Exception):
        pass

    def kill(step: int, *_: object) -> None:
        if step == 5:
            raise Kill

    with pytest.raises(Kill):
        train(task, preset, root / "cut", callbacks=[kill], callback_steps=[5])
    resumed = train(task, preset, root / "cut").model()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_may_differ() -> None:
    mixed = (None, Operator(carrier=FullOrSparse(4)))
    settings = ToyConfig(
        d_vocab=20, n_layers=2, d_model=16, d_head=8, n_ctx=24, operators=mixed
    )
    assert ToyConfig.from_json(settings.to_json()) == settings
    assert ToyTransformer(settings)(TOKENS).isfinite().all()


@pytest.mark.parametrize("name", ["kv-bias", "sink-logit", "sigmoid", "linear"])
def test_sink_scores_are_shares(name: str) -> None:
    """A softmax's weight is a share as it stands: what a slot or a sink logit takes
    goes to no token. Other weights are counted as |A| / sum |A| of the row."""
    model = ToyModel(toy(name).eval())
    with torch.no_grad():
        for parameter_name, parameter in model.toy.named_parameters():
            if parameter_name.endswith("normaliser.t"):
                parameter.fill_(3.0)  # takes most of every row
    at = Site("pattern", layer=1)
    pattern = model.run(TOKENS, read=[at]).cache[at]
    share = pattern.abs()
    if name in ("sigmoid", "linear"):
        share = share / share.sum(-1, keepdim=True)
    else:
        assert pattern.sum(-1).max() < 0.99
    got = sink_scores(model, TOKENS).table.query("layer == 1")
    want = share[..., 0].mean(-1).flatten().tolist()
    assert got.sort_values(["batch", "head"])["score"].tolist() == pytest.approx(
        want, abs=1e-5
    )


PAIRS = ms.PromptPairs(
    clean=TOKENS[:2, :8],
    corrupted=TOKENS[:2, :8].clone().index_fill_(1, torch.tensor([4]), 9),
    answers=torch.tensor([3, 4]),
    wrong=torch.tensor([5, 6]),
)


@pytest.mark.parametrize(
    "name", ["softmax", "kv-bias", "gate", "flow", "bidirectional"]
)
def test_a_sweep_is_one_patched_run_a_place(name: str) -> None:
    model = ToyModel(toy(name).double().eval())
    got = ms.patch_sweep(
        model, PAIRS, ms.logit_diff, site="resid_pre", direction="denoising"
    ).table
    site = Site("resid_pre", layer=1)
    clean = model.run(PAIRS.clean, read=[site]).cache[site]
    for pos in range(8):

        def patch(x: torch.Tensor, pos: int = pos) -> torch.Tensor:
            return torch.cat([x[:, :pos], clean[:, pos : pos + 1], x[:, pos + 1 :]], 1)

        logits = model.run(PAIRS.corrupted, edit={site: patch}).logits[:, -1]
        want = logits[[0, 1], PAIRS.answers] - logits[[0, 1], PAIRS.wrong]
        rows = got.query("layer == 1 and pos == @pos").sort_values("prompt")
        assert rows["value"].tolist() == pytest.approx(want.tolist(), abs=1e-12)


@EVERY
@pytest.mark.first_case
@pytest.mark.filterwarnings("ignore:faithfulness. full and ablated")  # two prompts
@pytest.mark.some_cases(12)
def test_edges_are_right_or_refused(name: str) -> None:
    """All of a layer's edges are cut at its queries, keys and values: a part that
    reads the residual beside them would be left out in silence."""
    operator = OPERATORS[name]
    model = ToyModel(toy(name).double().eval())
    if operator.reads_x or not operator.is_causal:
        with pytest.raises(ValueError, match="Node methods"):
            ms.exact_edges(model, PAIRS, ms.logit_diff)
        return
    scores = ms.exact_edges(model, PAIRS, ms.logit_diff)
    every = ms.top_edges(scores, len(scores.table))
    # With every edge cut the model runs as on the corrupted prompt.
    curve = ms.faithfulness(
        model, every, PAIRS, ms.logit_diff, ablation="patch", resamples=40
    )
    run = model.run(PAIRS.corrupted).logits[:, -1]
    want = run[[0, 1], PAIRS.answers] - run[[0, 1], PAIRS.wrong]
    assert curve.table["ablated"].tolist() == pytest.approx(want.tolist(), abs=1e-9)
