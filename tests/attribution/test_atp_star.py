"""AtP*'s corrections against brute force, an explicit loop and planted cases."""

from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from mechsink.attribution.atp_star import atp_star
from mechsink.attribution.attribution_patching import attribution_patching
from mechsink.attribution.gradients import gradients
from mechsink.attribution.node_runs import AskedNodes
from mechsink.attribution.qk_fix import OneKey, is_softmax
from mechsink.interventions.patching import patch_sweep
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Model
from mechsink.sites import Site
from tests.attribution.test_nodes import off, pairs, toy
from tests.interventions.float64 import float64_inside, peer_model
from tests.models.backends import load
from toy_tasks import ToyConfig, ToyTransformer

MATRIX = ["gpt2", "gpt_neox", "qwen3", "gemma2", "mistral", "phi3"]
FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.matrix) for name in MATRIX)]


@pytest.mark.parametrize("sink", [None, 0.7])
def test_one_key_is_a_softmax_computed_anew(sink: float | None) -> None:
    """Row by row, key by key; `sink` is a learned logit that is no key."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> torch.Tensor:
        return scale * torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.double)

    hidden = torch.ones(5, 5).triu(1).bool()
    scores = draw(4).masked_fill(hidden, -torch.inf)
    patched = draw(4).masked_fill(hidden, -torch.inf)
    gradient = draw(1)

    def softmax(row: torch.Tensor) -> torch.Tensor:
        more = row.new_full((1,), -torch.inf if sink is None else sink)
        return torch.cat([row, more]).softmax(0)[:-1]

    want = torch.zeros(2, 3, 5, dtype=torch.double)
    rows = torch.zeros(2, 3, 5, dtype=torch.double)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                clean = softmax(scores[b, h, i])
                rows[b, h, i] = clean.sum()
                for t in range(i + 1):
                    row = scores[b, h, i].clone()
                    row[t] = patched[b, h, i, t]
                    new = softmax(row)
                    want[b, h, t] += (clean - new) @ gradient[b, h, i]
    got = OneKey.of(scores, patched, None if sink is None else rows)(gradient)
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("scores", "new"),
    [
        ([40.0, 0.0, 1.0], -40.0),  # saturated, and taken away
        ([40.0, 0.0, 1.0], 39.9),
        ([0.0, 60.0, 1.0], 130.0),  # from nothing to all
        ([0.0, 1.0, 2.0], 900.0),  # beyond what exp can hold
        ([800.0, 0.0, 1.0], -800.0),
        ([0.3, 0.1, -0.2], 0.3 + 1e-9),  # hardly at all
        ([-1e38, 1.0, 1.0], -1e38),  # masked
    ],
)
def test_one_key_keeps_its_digits_where_attention_is_saturated(
    scores: list[float], new: float
) -> None:
    gradient = [0.7, -1.3, 0.4]
    mpmath.mp.dps = 900

    def softmax(row: list[float]) -> list[Any]:
        weights = [mpmath.exp(mpmath.mpf(s)) for s in row]
        return [w / sum(weights) for w in weights]

    clean, moved = softmax(scores), softmax([new, *scores[1:]])
    change = sum(
        (c - m) * mpmath.mpf(g) for c, m, g in zip(clean, moved, gradient, strict=True)
    )
    row, patched = (
        torch.tensor(x, dtype=torch.double)[None, None, None]
        for x in (scores, [new, *scores[1:]])
    )
    slope = torch.tensor(gradient, dtype=torch.double)[None, None, None]
    got = OneKey.of(row, patched, None)(slope)[0, 0]
    assert float(got[0]) == pytest.approx(float(change), rel=1e-9, abs=1e-300)
    assert got[1:].abs().max() == 0  # other keys' scores did not move


def by_brute_force(
    model: Model, own: PromptPairs, name: str, positions: Any
) -> dict[tuple[int, int, int], torch.Tensor]:
    """(layer, head, pos) to each prompt's score: one run for every single patch."""
    (batch,) = own.tokens(model)
    shape = model.shape
    found = {}
    n_parts = shape.n_heads if name == "q" else shape.n_kv_heads
    spots = [slice(None)] if positions == "all" else range(batch.n_pos)
    for layer in range(shape.n_layers):
        site, pattern = Site(name, layer), Site("pattern", layer)
        source = model.run(batch.corrupted, read=[site]).cache[site]
        clean = model.run(batch.clean, read=[pattern]).cache[pattern]
        slope = gradients(model, batch.clean, logit_diff, [pattern], batch)[pattern]
        for part in range(n_parts):
            for pos in spots:

                def edit(
                    x: torch.Tensor, place: Any = (slice(None), pos, part),
                    source: torch.Tensor = source,
                ) -> torch.Tensor:  # fmt: skip
                    x = x.clone()
                    x[place] = source[place]
                    return x

                run = model.run(batch.clean, read=[pattern], edit={site: edit})
                moved = clean - run.cache[pattern]
                key = (layer, part, -1 if positions == "all" else int(pos))
                found[key] = (moved * slope).sum((1, 2, 3)).detach()
    return found


@pytest.mark.first_case
@pytest.mark.parametrize("family", ["toy", *FAMILIES])
@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("positions", [None, "all"])
@pytest.mark.some_cases(8)
def test_qk_fix_by_brute_force(family: str, name: str, positions: Any) -> None:
    # Grouped queries, rotary positions, QK norms, windows, caps: the model's own way.
    with float64_inside():
        model: Model = (
            toy() if family == "toy" else BridgeModel(peer_model(family), name=family)
        )
        own = pairs(n=2, d_vocab=30)
        table = atp_star(
            model, own, logit_diff, sites=[name], positions=positions, grad_drop=False
        ).table
        want = by_brute_force(model, own, name, positions)
    assert len(table) == 2 * len(want)
    reach = max(float(x.abs().max()) for x in want.values())
    assert reach > 1e-3
    short = "h" if name == "q" else "kv"
    for (layer, part, pos), scores in want.items():
        rows = table[
            (table["layer"] == layer)
            & (table["component"] == f"{short}{part}.{name}")
            & (table["pos"] == pos)
        ]
        assert rows["score"].to_numpy() == pytest.approx(
            scores.numpy(), abs=1e-9 * reach
        )


def test_qk_fix_is_exact_where_all_after_the_softmax_is_affine() -> None:
    """One attention layer, saturated: the plain gradient misses what the fix sees."""
    config = ToyConfig(
        d_vocab=30, n_layers=1, n_heads=4, n_kv_heads=2, d_model=16, d_head=8,
        n_ctx=8, norm="none", mlp_layers=(),
    )  # fmt: skip
    model = ToyModel(ToyTransformer(config).double().eval())
    with torch.no_grad():
        model.toy.get_submodule("blocks.0.attn").W_Q.mul_(60)  # type: ignore[operator]
    own = pairs(n=4)
    (batch,) = own.tokens(model)
    pattern = model.run(batch.clean, read=[Site("pattern", 0)]).cache
    top = pattern[Site("pattern", 0)].amax(-1)
    assert top.median() > 0.999
    for name in ("q", "k"):
        for positions in (None, "all"):
            exact = patch_sweep(
                model, own, logit_diff, name, "noising", positions=positions
            )
            want = (
                exact.table["prompt"].map(dict(enumerate(exact.clean)))
                - exact.table["value"]
            )
            options: dict[str, Any] = {"sites": [name], "positions": positions}
            fixed, plain = (
                atp_star(
                    model, own, logit_diff, grad_drop=False, qk_fix=fix, **options
                ).table["score"]
                for fix in (True, False)
            )
            assert off(fixed, want) < 1e-9
            assert off(plain, want) > 0.8
            correlation = np.corrcoef(plain, want)[0, 1]
            assert correlation < 0.8


def test_without_corrections_it_is_attribution_patching() -> None:
    model, own = toy(), pairs()
    names = ("q", "k", "v", "z", "attn_out", "mlp_post", "mlp_out")
    found = atp_star(
        model, own, logit_diff, sites=names, qk_fix=False, grad_drop=False, neurons=[2]
    ).table
    assert np.array_equal(found["magnitude"], found["score"].abs())
    for name in names:
        options: Any = {"neurons": [2]} if name == "mlp_post" else {}
        plain = attribution_patching(model, own, logit_diff, name, **options).table
        mine = found[found["node"].str.contains(rf"\.{name}(?:\[2\])?$")]
        assert off(mine["score"], plain["score"]) < 1e-12


def by_loop(
    model: ToyModel, own: PromptPairs, dropped: int
) -> dict[str, list[torch.Tensor]]:
    """Gradients at z and mlp_out of each layer, by a forward pass written out."""
    (batch,) = own.tokens(model)
    resid = model.toy.embed(batch.clean)
    nodes: dict[str, list[torch.Tensor]] = {"z": [], "mlp_out": []}
    for layer, block in enumerate(model.toy.blocks):
        part: Any = block
        attn = part.attn
        q, k, v = (x.transpose(1, 2) for x in attn.project(part.ln1(resid)))
        k, v = (x.repeat_interleave(attn.group, dim=1) for x in (k, v))
        z = (attn.pattern(q, k) @ v).transpose(1, 2)
        z = z + torch.zeros_like(z).requires_grad_()
        wrote = z.flatten(2) @ attn.W_O.flatten(0, 1)
        middle = resid + (wrote.detach() if layer == dropped else wrote)
        mlp = part.mlp(part.ln2(middle))
        mlp = mlp + torch.zeros_like(mlp).requires_grad_()
        resid = middle + (mlp.detach() if layer == dropped else mlp)
        nodes["z"].append(z)
        nodes["mlp_out"].append(mlp)
    logits = model.toy.unembed(resid)[:, -1]
    each = torch.arange(len(logits))
    total = (logits[each, own.answers] - logits[each, own.wrong]).sum()
    flat = [*nodes["z"], *nodes["mlp_out"]]
    grads = torch.autograd.grad(total, flat, allow_unused=True)
    filled = [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(flat, grads, strict=True)
    ]
    n = len(nodes["z"])
    return {"z": filled[:n], "mlp_out": filled[n:]}


def test_grad_drop_is_a_loop_of_detached_passes() -> None:
    model, own = toy(), pairs()
    (batch,) = own.tokens(model)
    found = atp_star(model, own, logit_diff, sites=["z", "mlp_out"]).table
    loops = [by_loop(model, own, dropped) for dropped in range(3)]
    for name, dims in (("z", 3), ("mlp_out", 2)):
        for layer in range(3):
            site = Site(name, layer)
            ends = [
                model.run(tokens, read=[site]).cache[site].detach()
                for tokens in (batch.clean, batch.corrupted)
            ]
            delta = ends[0] - ends[1]
            each = [(delta * loop[name][layer]).sum(dims) for loop in loops]
            assert each[layer].abs().max() == 0  # its own layer's drop leaves nothing
            want = torch.stack(each).abs().sum(0) / 2  # L - 1 = 2
            rows = found[(found["layer"] == layer) & found["node"].str.endswith(name)]
            got = torch.tensor(rows["magnitude"].to_numpy())
            if name == "z":
                want = want.transpose(1, 2)  # [prompt head pos], as the table has it
            assert (got - want.flatten()).abs().max() < 1e-12
            plain = torch.tensor(rows["score"].abs().to_numpy())
            if layer < 2:
                assert (got - plain).abs().max() > 1e-3
    mean = found.groupby(["prompt", "node"], sort=False)["magnitude"].sum()
    nodes = atp_star(model, own, logit_diff, sites=["z", "mlp_out"]).nodes
    assert off(nodes["magnitude"], mean.groupby("node", sort=False).mean()) < 1e-12


def cancelling() -> ToyModel:
    """Layer 0's MLP writes to the metric, and layer 1's takes the same off again.

    Dimension 0 holds what the token is (2 for token 1, -1 for token 2); layer 0 copies
    it to dimension 1, which the answer's logit reads; layer 1 subtracts dimension 1
    from it. Layer 2 copies dimension 0 to dimension 2, which it reads too.
    """
    config = ToyConfig(
        d_vocab=5, n_layers=3, d_model=4, d_head=2, d_mlp=1, n_ctx=4, norm="none",
        mlp="linear", positions="none",
    )  # fmt: skip
    toy = ToyTransformer(config).double().eval()
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[1, 0], toy.W_E[2, 0] = 2.0, -1.0
        for layer, (read, write, size) in enumerate(
            [(0, 1, 3.0), (1, 1, -1.0), (0, 2, 1.0)]
        ):
            mlp: Any = toy.get_submodule(f"blocks.{layer}.mlp")
            mlp.W_in[read, 0], mlp.W_out[0, write] = 1.0, size
        toy.W_unembed[1, 3] = toy.W_unembed[2, 3] = 1.0
    return ToyModel(toy)


def test_grad_drop_finds_what_cancels() -> None:
    model = cancelling()
    own = PromptPairs(
        torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), torch.tensor([3]),
        torch.tensor([4]),
    )  # fmt: skip
    plain = attribution_patching(model, own, logit_diff, "mlp_out", positions="all")
    # Clean less corrupted writes: 3 * 3 = 9 (layer 0), -9, and 3.
    assert plain.table["score"].tolist() == [0.0, -9.0, 3.0]
    found = atp_star(model, own, logit_diff, sites=["mlp_out"], positions="all").table
    assert found["score"].tolist() == [0.0, -9.0, 3.0]
    # Layer 0: dropped 0, without layer 1 all 9, without layer 2 nothing: 9 / 2.
    # Layers 1 and 2 have their full score in the two other drops.
    assert found["magnitude"].tolist() == [4.5, 9.0, 3.0]


def test_batches_and_lengths_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = toy(), pairs(n=5)
    found = []
    for rows in (5, 2):
        monkeypatch.setattr(AskedNodes, "_rows_at_once", lambda *_, rows=rows: rows)
        found.append(atp_star(model, own, logit_diff).table)
    for column in ("score", "magnitude"):
        assert off(found[1][column], found[0][column]) < 1e-12
    short = pairs(n=1, n_pos=4, seed=8)
    mixed = PromptPairs(
        [own.clean[0], short.clean[0]], [own.corrupted[0], short.corrupted[0]],
        torch.tensor([5, 5]), torch.tensor([9, 9]),
    )  # fmt: skip
    got = atp_star(model, mixed, logit_diff).table
    alone = atp_star(model, short, logit_diff).table
    for column in ("score", "magnitude"):
        mine = found[0][found[0]["prompt"] == 0][column]
        assert off(got[got["prompt"] == 0][column], mine) < 1e-12
        assert off(got[got["prompt"] == 1][column], alone[column]) < 1e-12


def test_chosen_layers_and_positions_are_rows_of_all() -> None:
    model, own = toy(), pairs()
    every = atp_star(model, own, logit_diff).table
    some = atp_star(model, own, logit_diff, layers=[2, 0], positions=[5, 1]).table
    key = ["prompt", "node", "pos"]
    both = some.merge(every, on=key, suffixes=("", "_all"), validate="1:1")
    assert len(both) == len(some) == 3 * 2 * (4 + 2 + 2 + 1) * 2
    assert off(both["score"], both["score_all"]) < 1e-12
    assert off(both["magnitude"], both["magnitude_all"]) < 1e-12


def test_a_sink_metric_and_the_plot() -> None:
    found = atp_star(toy(), pairs(), sink_attention(layer=1, head=2))
    late = found.table[found.table["layer"] == 2]
    assert late["score"].abs().max() == 0
    by_node = found.nodes.set_index("node")
    own = by_node.loc[["L1H2.q", "L1KV1.k"], "score"].abs()
    assert own.min() > 0
    assert by_node.loc[["L1H1.q", "L1KV0.k", "L1KV1.v"], "score"].abs().max() == 0
    drawn = found.plot().images[0].get_array()
    assert drawn is not None
    assert drawn.shape == (3, 4 + 2 + 2 + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    found = atp_star(load(family), pairs(d_vocab=80), logit_diff)
    assert np.isfinite(found.table["score"]).all()
    assert (found.nodes["magnitude"] >= 0).all()
    reach = found.nodes.groupby(found.nodes["node"].str.split(".").str[-1])
    assert (reach["magnitude"].max() > 0).all()


@pytest.mark.matrix
def test_refusals_and_their_advice() -> None:
    own = pairs(d_vocab=30)
    gptj = load("gptj")
    with pytest.raises(ValueError, match=r"gptj discards.*Pass qk_fix=False"):
        atp_star(gptj, own, logit_diff)
    atp_star(gptj, own, logit_diff, qk_fix=False)
    atp_star(gptj, own, logit_diff, sites=["v", "mlp_out"])
    with pytest.raises(ValueError, match=r"in olmo2 the q of one head changes"):
        atp_star(load("olmo2"), own, logit_diff)
    atp_star(load("olmo2"), own, logit_diff, qk_fix=False)
    relu = load("toy_gqa_relu")
    with pytest.raises(ValueError, match="no softmax of its scores"):
        atp_star(relu, own, logit_diff)
    atp_star(relu, own, logit_diff, positions="all")
    with pytest.raises(ValueError, match=r"one layer\. Pass grad_drop=False"):
        atp_star(toy(n_layers=1), own, logit_diff)
    atp_star(toy(n_layers=1), own, logit_diff, grad_drop=False)
    for sites in (["resid_pre"], []):
        with pytest.raises(ValueError, match="Allowed: some of q, k, v, z"):
            atp_star(toy(), own, logit_diff, sites=sites)
    with pytest.raises(ValueError, match="Add it"):
        atp_star(toy(), own, logit_diff, neurons=[1])
    same = PromptPairs(own.clean, own.clean, own.answers, own.wrong)
    with pytest.raises(ValueError, match="identical clean and corrupted prompts"):
        atp_star(toy(), same, logit_diff)
    with pytest.raises(ValueError, match="does not depend on any q or k"):
        atp_star(
            toy(), own, sink_attention(layer=0, head=0), sites=["q", "k"], layers=[2]
        )


def test_relu_attention_is_no_softmax() -> None:
    scores = torch.tensor([[[[1.0, -1.0], [2.0, 1.0]]]])
    assert is_softmax(scores, scores.softmax(-1) * 0.8)
    assert not is_softmax(scores, scores.relu() / 2)
