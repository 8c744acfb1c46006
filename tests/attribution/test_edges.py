"""Edge scores against hand-split models, exact patching and path patching."""

import itertools
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import Tensor

import mechsink.attribution.edges as edges_module
from mechsink.attribution.edge_patching import cut_metric
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.edges import (
    eap,
    eap_clean_corrupted,
    eap_ig,
    eap_ig_activations,
)
from mechsink.attribution.exact import exact_edges
from mechsink.attribution.wires import Wires
from mechsink.attribution.writes import outputs, source_sites, written
from mechsink.interventions.paths import path_patch
from mechsink.metrics import answer_logprob, logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.models.wiring import wiring
from mechsink.prompts import PromptPairs
from mechsink.run import Metric, Run
from mechsink.sites import Site
from tests.attribution.split_toy import split_run
from tests.interventions.float64 import float64_inside, peer_model
from toy_tasks import ToyConfig, ToyTransformer

GRADIENT_METHODS: list[Callable[..., EdgeScores]] = [
    eap,
    eap_clean_corrupted,
    partial(eap_ig, steps=1),
    partial(eap_ig, steps=3),
    partial(eap_ig_activations, steps=2),
]
MATRIX = pytest.mark.matrix
FAMILIES = ("gpt2", "gpt_neox", "gptj", "llama", "llama_mqa", "qwen3", "gemma2",
            "olmo2", "phi3", "bloom")  # fmt: skip
POST_NORM = ("gemma2", "olmo2")
FEW = ("gpt_neox", "llama", "gemma2")  # parallel, grouped, post-norm
SOME_FIRST = [f if f in FEW else pytest.param(f, marks=MATRIX) for f in FAMILIES]
SMALL = {"d_vocab": 80, "n_layers": 2, "d_model": 16, "d_head": 4, "n_heads": 4,
         "d_mlp": 24}  # fmt: skip


def prompt_pairs(n: int = 5, n_pos: int = 6, seed: int = 0) -> PromptPairs:
    drawn = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 80, (n, n_pos), generator=drawn)
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + torch.randint(1, 79, (n,), generator=drawn)) % 80
    answers = torch.randint(0, 40, (n,), generator=drawn)
    return PromptPairs(clean, corrupted, answers, answers + 40)


PAIRS = prompt_pairs()


def toy(seed: int = 0, **options) -> ToyModel:
    model = ToyTransformer(ToyConfig(**SMALL, **options), seed).double()
    drawn = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():  # gains and biases that are not 1 and 0
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=0.3)
    return ToyModel(model)


def affine(**options) -> ToyModel:
    """Attention is uniform and MLPs are linear: logits are affine in the embedding."""
    model = toy(norm="none", mlp="linear", **options)
    with torch.no_grad():
        for block in model.toy.blocks:
            block.attn.W_Q.zero_()
    return model


@pytest.mark.first_case
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_on_an_affine_model_every_method_is_exact(
    method: Callable[..., EdgeScores], n_kv_heads: int
) -> None:
    model = affine(n_kv_heads=n_kv_heads)
    got, want = (f(model, PAIRS, logit_diff) for f in (method, exact_edges))
    assert want.table["score"].abs().max() > 1e-3
    columns = ["source", "target", "score"]
    pd.testing.assert_frame_equal(
        got.table[columns], want.table[columns], rtol=0, atol=1e-9 * 1e-3
    )


@pytest.mark.first_case
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_gradients_at_each_targets_own_input(norm: str, n_kv_heads: int) -> None:
    """eap, eap_ig and clean-corrupted against a forward pass split by hand."""
    model = toy(norm=norm, n_kv_heads=n_kv_heads)
    clean, corrupted = PAIRS.clean, PAIRS.corrupted

    def by_hand(shares: list[float]) -> Tensor:
        wires = Wires.of(model.shape)
        with torch.no_grad():
            ends = [model.toy.embed(tokens) for tokens in (clean, corrupted)]
            writes = [split_run(model.toy, end)[1] for end in ends]
        total = torch.zeros(len(wires.sources), len(wires.targets), dtype=torch.float64)
        for share in shares:
            x = ends[1] + share * (ends[0] - ends[1])
            logits, _, leaves = split_run(model.toy, x)
            rows = torch.arange(len(clean))
            metric = logits[rows, -1, PAIRS.answers] - logits[rows, -1, PAIRS.wrong]
            grads = torch.autograd.grad(metric.sum(), list(leaves.values()))
            for (s, source), (name, grad) in itertools.product(
                enumerate(wires.sources), zip(leaves, grads, strict=True)
            ):
                change = writes[0][source] - writes[1][source]
                total[s, wires.target_index[name]] += (change * grad).sum()
        return total / (len(shares) * len(clean))

    for method, shares in (
        (eap, [1.0]),
        (eap_clean_corrupted, [1.0, 0.0]),
        (partial(eap_ig, steps=4), [0.125, 0.375, 0.625, 0.875]),
    ):
        got = torch.as_tensor(method(model, PAIRS, logit_diff).matrix)
        want = by_hand(shares)
        real = ~got.isnan()
        torch.testing.assert_close(got[real], want[real], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.matrix
def test_exact_edges_equal_a_forward_pass_split_by_hand(norm: str) -> None:
    model = toy(norm=norm, n_kv_heads=2)
    with torch.no_grad():
        ends = [model.toy.embed(tokens) for tokens in (PAIRS.clean, PAIRS.corrupted)]
        clean, corrupted = (split_run(model.toy, end) for end in ends)
        rows = torch.arange(len(PAIRS))

        def metric(logits: Tensor) -> Tensor:
            return logits[rows, -1, PAIRS.answers] - logits[rows, -1, PAIRS.wrong]

        for row in exact_edges(model, PAIRS, logit_diff).table.itertuples():
            change = clean[1][row.source] - corrupted[1][row.source]
            patched = split_run(model.toy, ends[0], {row.target: change})[0]
            want = (metric(clean[0]) - metric(patched)).mean()
            assert row.score == pytest.approx(float(want), rel=1e-9, abs=1e-12)


@pytest.mark.first_case
@pytest.mark.parametrize("family", SOME_FIRST)
@pytest.mark.matrix
@pytest.mark.some_cases(4)
def test_exact_edges_equal_path_patching(family: str) -> None:
    """Another engine: senders at z, receivers at q, k, v, MLPs and logits."""
    pairs = prompt_pairs(3)
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        wires = Wires.of(model.shape)
        kv = "kv0" if "kv0<k>" in "".join(wires.targets) else "h0"
        chosen = [("a0.h1", "a1.h2<q>"), ("a0.h0", f"a2.{kv}<k>"),
                  ("a1.h3", f"a2.{kv}<v>"), ("m0", "m2"), ("m1", "logits"),
                  ("a0.h2", "m1"), ("a2.h1", "logits")]  # fmt: skip
        if family in POST_NORM:  # path patching lets a head change the norm's scale
            chosen = [edge for edge in chosen if edge[0].startswith("m")]
        found = exact_edges(model, pairs, logit_diff, edges=chosen)
        assert len(found.table) == len(chosen)
        for (source, target), score in zip(chosen, found.table["score"], strict=True):
            sender, receiver = wires.site(source), wires.site(target)
            assert sender is not None
            receivers = None if receiver is None else [receiver]
            path = path_patch(
                model, pairs, logit_diff, sender=sender, receivers=receivers,
                direction="noising",
            )  # fmt: skip
            change = path.clean - path.table["value"].to_numpy()
            assert score == pytest.approx(change.mean(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.matrix
def test_exact_edges_of_a_toy_whose_attention_has_the_positions(positions: str) -> None:
    """q and k stand before the rotation, their edges end where path patching's do."""
    config = ToyConfig(**{**SMALL, "n_layers": 3}, positions=positions)
    pairs = prompt_pairs(3)
    with float64_inside():
        model = ToyModel(ToyTransformer(config).double().eval())
        chosen = [("a0.h1", "a1.h2<q>"), ("a0.h0", "a2.h1<k>"), ("m0", "a2.h1<q>"),
                  ("m1", "logits")]  # fmt: skip
        found = exact_edges(model, pairs, logit_diff, edges=chosen)
        for (source, target), score in zip(chosen, found.table["score"], strict=True):
            wires = Wires.of(model.shape)
            sender, receiver = wires.site(source), wires.site(target)
            assert sender is not None
            path = path_patch(
                model, pairs, logit_diff, sender=sender,
                receivers=None if receiver is None else [receiver],
                direction="noising",
            )  # fmt: skip
            change = path.clean - path.table["value"].to_numpy()
            assert score == pytest.approx(change.mean(), rel=1e-6, abs=1e-9)
            assert abs(score) > 1e-7


@pytest.mark.first_case
@pytest.mark.parametrize("metric", [logit_diff, sink_attention(layer=1, head=2)])
@pytest.mark.parametrize("family", SOME_FIRST)
@pytest.mark.some_cases(7)
@pytest.mark.matrix
def test_eap_is_the_derivative_of_exact_patching(family: str, metric: Metric) -> None:
    """Cut an edge by a thousandth of the corrupted write: the slope is its score."""
    pairs, small = prompt_pairs(2), 1e-5
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        wires, known = Wires.of(model.shape), wiring(model)
        scores = eap(model, pairs, metric).matrix
        (batch,) = pairs.tokens(model)
        clean, corrupted = (
            written(wires, known, model.run(t, read=source_sites(wires)).cache)
            for t in (batch.clean, batch.corrupted)
        )
        for source, target in wires.edges[:: max(1, len(wires.edges) // 25)]:
            cut = torch.zeros(1, *wires.real.shape, dtype=torch.bool)
            s, t = wires.source_index[source], wires.target_index[target]
            cut[0, s, t] = True
            ends = [
                cut_metric(
                    model, wires, known, batch, metric, cut,
                    clean + sign * small * (corrupted - clean),
                ).mean()
                for sign in (1, -1)
            ]  # fmt: skip
            slope = float(ends[1] - ends[0]) / (2 * small)
            assert scores[s, t] == pytest.approx(slope, rel=1e-4, abs=1e-7), source


@pytest.mark.matrix
def test_scores_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(n_kv_heads=2)
    lengths = (prompt_pairs(3, 6), prompt_pairs(4, 8, seed=1))  # a short last batch
    rows = [[getattr(p, name)[i] for p in lengths for i in range(len(p))]
            for name in ("clean", "corrupted")]  # fmt: skip
    answers = torch.cat([p.answers for p in lengths])
    pairs = PromptPairs(*rows, answers, answers + 40)
    alone = []
    for part in lengths:
        alone += [
            eap_ig(model, PromptPairs(part.clean[i : i + 1], part.corrupted[i : i + 1],
                                      part.answers[i : i + 1], part.wrong[i : i + 1]),
                   logit_diff).table["score"]
            for i in range(len(part))
        ]  # fmt: skip
    want = sum(alone) / len(alone)
    for at_once in (1, 2, 100):
        monkeypatch.setattr(edges_module, "_rows_at_once", lambda *_, n=at_once: n)
        got = eap_ig(model, pairs, logit_diff).table["score"]
        pd.testing.assert_series_equal(got, want, rtol=1e-9, check_names=False)


def test_after_an_overrun_batches_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA does it: a pass of more than two prompts does not fit, at first."""
    model = toy(n_kv_heads=2)
    want = eap_ig(model, PAIRS, logit_diff).table
    true = edges_module.collect

    def overrun(*args):
        if len(args[4]) > 2:
            raise torch.OutOfMemoryError
        return true(*args)

    monkeypatch.setattr(edges_module, "collect", overrun)
    got = eap_ig(model, PAIRS, logit_diff).table
    pd.testing.assert_frame_equal(got, want, rtol=1e-9)

    def never(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(edges_module, "collect", never)
    with pytest.raises(MemoryError, match="not even one pair of 6 tokens"):
        eap_ig(model, PAIRS, logit_diff)


def test_the_plot_shows_the_strongest_edges() -> None:
    found = eap(toy(), PAIRS, logit_diff)
    ax = found.plot(n=7)
    names = [label.get_text() for label in ax.get_yticklabels()]
    best = found.table.loc[found.table["score"].abs().idxmax()]
    assert len(names) == 7
    assert names[-1] == f"{best['source']} → {best['target']}"
    plt.close(ax.figure)


@pytest.mark.matrix
def test_exact_patching_does_not_depend_on_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mechsink.attribution.exact as exact_module

    model = toy(n_kv_heads=2)
    want = exact_edges(model, PAIRS, logit_diff).table["score"]
    monkeypatch.setattr(exact_module, "cut_rows", lambda *_: 3)
    got = exact_edges(model, PAIRS, logit_diff).table["score"]
    pd.testing.assert_series_equal(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.matrix
def test_integrated_gradients_settle_as_steps_grow() -> None:
    model = toy(norm="rms")
    runs = [
        eap_ig(model, PAIRS, logit_diff, steps=n).table["score"] for n in (4, 64, 256)
    ]
    far, near = ((run - runs[-1]).abs().max() for run in runs[:2])
    assert near < far / 3  # kinks of ReLU keep it from falling faster


def test_a_metric_of_all_logits_takes_whole_runs() -> None:
    """A metric that promises nothing gives the scores of the one that does."""

    class Unpromising:
        reads: frozenset[Site] = frozenset()

        def __call__(self, run: Run, prompts) -> Tensor:
            return answer_logprob(run, prompts)

    model = toy()
    one, other = (eap_ig(model, PAIRS, m) for m in (answer_logprob, Unpromising()))
    pd.testing.assert_series_equal(one.table["score"], other.table["score"], rtol=1e-9)
    assert one.clean == pytest.approx(other.clean)


@pytest.mark.parametrize("family", [*POST_NORM, "gpt2", "llama"])
@pytest.mark.first_case
def test_writes_sum_to_the_residual(family: str) -> None:
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        wires, known = Wires.of(model.shape), wiring(model)
        last = Site("resid_post", 2)
        read = [*source_sites(wires), last]
        caches = [model.run(t, read=read).cache for t in (PAIRS.clean, PAIRS.corrupted)]
        sums = [written(wires, known, cache).sum(1) - cache[last] for cache in caches]
        # Biases are in no source; after a post-norm their share differs by position.
        spread = sums[0].std((0, 1)).max()
        assert spread < 1e-9 or family == "gpt2"
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-9, atol=1e-9)


def test_names_and_numbers_of_edges() -> None:
    gpt2_small = Wires(12, 12, 12)
    sizes = len(gpt2_small.sources), len(gpt2_small.targets), len(gpt2_small.edges)
    assert sizes == (157, 445, 32_491)
    grouped = Wires.of(toy(n_kv_heads=2).shape)
    assert grouped.inside("a1.kv1<k>") == ["a1.h2", "a1.h3"]
    assert grouped.ports("a1.h2") == ["a1.h2<q>", "a1.kv1<k>", "a1.kv1<v>"]
    assert grouped.site("a1.kv1<k>") == Site("k", 1, kv_head=1)
    assert ("a0.h0", "m0") in grouped.edges
    parallel = Wires(2, 4, 4, is_parallel=True)
    assert ("a0.h0", "m0") not in parallel.edges


def test_where_circuits_of_a_metric_end() -> None:
    wires = Wires.of(toy(n_kv_heads=2).shape)
    assert outputs(wires, logit_diff, "x") == ["logits"]
    sink = sink_attention(layer=1, head=3)
    assert outputs(wires, sink, "x") == ["a1.h3<q>", "a1.kv1<k>"]


def test_a_sink_metrics_edges_end_at_its_head() -> None:
    model = toy(n_kv_heads=2)
    found = exact_edges(model, PAIRS, sink_attention(layer=1, head=3))
    live = found.table[found.table["score"].abs() > 1e-12]
    assert found.outputs == ["a1.h3<q>", "a1.kv1<k>"]
    into_output = live[live["target"].isin(found.outputs)]
    assert len(into_output) > 4
    # Values of layer 1, and the MLP and logits above, play no part.
    assert not live["target"].isin(["a1.kv1<v>", "m1", "logits"]).any()


def _pairs(**changes) -> PromptPairs:
    fields = {"clean": PAIRS.clean, "corrupted": PAIRS.corrupted,
              "answers": PAIRS.answers, "wrong": PAIRS.wrong}  # fmt: skip
    return PromptPairs(**{**fields, **changes})


class Constant:
    """A metric that is 1 whatever the run."""

    reads: frozenset[Site] = frozenset()
    logits_read = "none"

    def __call__(self, run: Run, prompts) -> Tensor:
        return torch.ones(len(run.tokens))

    def __repr__(self) -> str:
        return "constant"


@pytest.mark.parametrize("method", [*GRADIENT_METHODS, exact_edges])
@pytest.mark.first_case
def test_bad_input(method: Callable[..., EdgeScores]) -> None:
    model = toy()
    with pytest.raises(ValueError, match=r"identical in all 5 pairs.*exchanging"):
        method(model, _pairs(corrupted=PAIRS.clean), logit_diff)
    with pytest.raises(ValueError, match=r"constant.*(depend|Check)"):
        method(model, PAIRS, Constant())
    with pytest.raises(ValueError, match="prompts have no answers"):
        method(model, _pairs(answers=None, wrong=None), logit_diff)
    broken = toy()
    with torch.no_grad():
        broken.toy.W_E[int(PAIRS.clean[1, 0])] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite for pairs .*selfcheck"):
        method(broken, PAIRS, logit_diff)


def test_bad_options() -> None:
    model = toy()
    for method in (eap_ig, eap_ig_activations):
        with pytest.raises(ValueError, match=r"steps=0\. Allowed: 1 and more"):
            method(model, PAIRS, logit_diff, steps=0)
    with pytest.raises(ValueError, match=r"'a9.h0' is no source .*input, a0.h0"):
        exact_edges(model, PAIRS, logit_diff, edges=[("a9.h0", "logits")])
    with pytest.raises(ValueError, match="reads the residual stream before"):
        exact_edges(model, PAIRS, logit_diff, edges=[("m1", "a0.h0<q>")])
    with pytest.raises(ValueError, match=r"edges=\[\] names no edge"):
        exact_edges(model, PAIRS, logit_diff, edges=[])

    class Stream(Constant):
        reads = frozenset({Site("resid_pre", 1)})

    with pytest.raises(ValueError, match=r"reads L1.resid_pre, .*attribution_patching"):
        eap(model, PAIRS, Stream())


def test_a_toy_with_attention_in_some_layers_is_refused() -> None:
    config = ToyConfig(**{**SMALL, "attn_layers": (0,)})
    with pytest.raises(ValueError, match="attention in some layers only"):
        eap(ToyModel(ToyTransformer(config).double()), PAIRS, logit_diff)


def test_saves_and_loads(tmp_path) -> None:
    found = eap(toy(), PAIRS, logit_diff)
    again = EdgeScores.load(found.save(tmp_path / "scores"))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.wires == found.wires
    assert list(found.table.columns) == [
        "source", "target", "score", "low", "high", "p_value", "q_value",
    ]  # fmt: skip
