"""Path patching against sums worked by hand and against the stream kept by hand."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from mechsink.interventions import path_passes
from mechsink.interventions.patching import patch_sweep
from mechsink.interventions.path_results import PathResult, PathSweepResult
from mechsink.interventions.paths import path_patch, path_sweep
from mechsink.interventions.places import Direction
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Model
from mechsink.sites import Site
from tests.interventions.float64 import TRUE_FLOAT64, float64_inside
from tests.models.backends import load
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer

QUICK = ["llama", "gpt_neox"]
MATRIX = ["gpt2", "gemma2", "olmo2"]
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.matrix) for name in MATRIX)]
CHANGES = ["total", "direct", "indirect", "pure_indirect"]
Z = Site("z", 0, head=0)
Q = Site("q", 1, head=0)
K = Site("k", 1, kv_head=0)


def pairs(n: int = 2, n_pos: int = 7) -> PromptPairs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 80, (2, n, n_pos), generator=generator)
    return PromptPairs(
        tokens[0], tokens[1], torch.tensor([5, 6])[:n], torch.tensor([9, 7])[:n]
    )


# By hand: L0H0 averages the tokens (as numbers), and L1H0's q and k read that mean.


def worked_model() -> ToyModel:
    """Streams: token, 1, 2 mean(tokens), 5 z of L1H0, 0, 0; logit 0 = last + 7 mean."""
    toy = ToyTransformer(
        ToyConfig(
            d_vocab=4, n_layers=2, n_heads=2, d_model=6, d_head=1, n_ctx=4, norm="none",
            positions="none", attention="relu", mlp_layers=(),
        )
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[:, 0] = torch.arange(4)
        toy.W_E[:, 1] = 1
        blocks: Any = toy.blocks
        first, second = (blocks[n].attn for n in (0, 1))
        first.W_Q[0, 1] = first.W_K[0, 1] = first.W_V[0, 0] = 1  # 1/(i+1) to each token
        first.W_O[0, 0, 2] = 2
        second.W_Q[0, 2] = 3  # q = 6 mean
        second.W_K[0, 1] = second.W_K[0, 2] = 1  # k = 1 + 2 mean
        second.W_V[0, 1] = 1
        second.W_O[0, 0, 3] = 5
        toy.W_unembed[3, 0] = 1
        toy.W_unembed[2, 0] = 3.5
    return ToyModel(toy)


def worked_pairs() -> PromptPairs:
    """Running means 1, 3/2, 2 (clean) and 0, 1, 1 (corrupted)."""
    clean, corrupted = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 2, 1]])
    return PromptPairs(clean, corrupted, torch.tensor([0]), torch.tensor([1]))


# z of L1H0 at the end is q_2 (k_0 + k_1 + k_2) / 3; q_2 is 6 or 12; the k's are
# 1, 3, 3 or 3, 4, 5. Corrupted: 5 x 6 x 7/3 + 7 x 1 = 77, clean: 5 x 12 x 12/3 +
# 7 x 2 = 254.
@pytest.mark.parametrize(
    ("direction", "receivers", "positions", "value"),
    [
        ("denoising", [Q], None, 5 * 12 * 7 / 3 + 7),
        ("denoising", [K], None, 5 * 6 * 12 / 3 + 7),
        ("denoising", [Q, K], None, 5 * 12 * 12 / 3 + 7),
        ("denoising", None, None, 5 * 6 * 7 / 3 + 14),
        ("denoising", [Q], [2], 5 * 12 * 7 / 3 + 7),
        ("denoising", [Q], [0, 1], 5 * 6 * 7 / 3 + 7),
        ("denoising", [K], [2], 5 * 6 * 9 / 3 + 7),
        ("noising", [Q], None, 5 * 6 * 12 / 3 + 14),
        ("noising", [K], None, 5 * 12 * 7 / 3 + 14),
        ("noising", None, None, 5 * 12 * 12 / 3 + 7),
    ],
)
@pytest.mark.first_case
def test_paths_worked_by_hand(
    direction: Direction,
    receivers: list[Site] | None,
    positions: list[int] | None,
    value: float,
) -> None:
    found: Any = path_patch(
        worked_model(), worked_pairs(), logit_diff, sender=Z, receivers=receivers,
        direction=direction, positions=positions,
    )  # fmt: skip
    assert (found.corrupted, found.clean) == ([pytest.approx(77)], [pytest.approx(254)])
    start, end = (77, 254) if direction == "denoising" else (254, 77)
    (row,) = found.table.to_dict("records")
    assert row["value"] == pytest.approx(value, abs=1e-9)
    assert row["effect"] == pytest.approx((value - start) / (end - start), abs=1e-9)
    if positions is None:  # all that the prompts say passes through this head
        assert row["total"] == pytest.approx(end - start, abs=1e-9)
        assert row["direct"] == pytest.approx((end - start) / 177 * 7, abs=1e-9)
        assert row["indirect"] == pytest.approx((end - start) / 177 * 170, abs=1e-9)
        assert row["pure_indirect"] == pytest.approx(row["indirect"], abs=1e-9)


def test_the_path_is_named() -> None:
    found: Any = path_patch(
        worked_model(), worked_pairs(), logit_diff, sender=Z, receivers=[Q, K]
    )
    assert found.table["path"].tolist() == ["L0H0.z -> L1H0.q, L1KV0.k"]
    assert found.receivers == ["L1H0.q", "L1KV0.k"]


# Models whose parts are set so that some paths carry nothing, or all add up.


def random_toy(**options: Any) -> ToyTransformer:
    sizes: dict[str, Any] = {"d_vocab": 80, "n_layers": 2, "n_heads": 2, "d_head": 4,
                             "d_model": 12, "d_mlp": 20, "n_kv_heads": 1}  # fmt: skip
    return ToyTransformer(ToyConfig(**sizes | options), seed=5).double()


def test_a_head_that_can_not_tell_keys_apart_ignores_its_query() -> None:
    toy = random_toy()
    blocks: Any = toy.blocks
    with torch.no_grad():
        blocks[1].attn.W_K.zero_()
    for receiver, moves in ((Q, False), (K, False), (Site("v", 1, kv_head=0), True)):
        found: Any = path_patch(
            ToyModel(toy), pairs(), logit_diff, sender=Z, receivers=[receiver]
        )
        assert (found.table["effect"].abs() > 1e-3).all() == moves
        assert (found.table["effect"].abs() < 1e-12).all() != moves
        assert (found.table["direct"].abs() > 1e-3).all()


def test_in_a_linear_model_all_paths_add_up() -> None:
    # Every path has one first stop, so the stops' effects and the direct one are all.
    toy = random_toy(norm="none", mlp="linear")
    blocks: Any = toy.blocks
    with torch.no_grad():
        blocks[1].attn.W_Q.zero_()  # attention stays uniform
    stops = [Site("mlp_out", 0), Site("v", 1, kv_head=0), Site("mlp_out", 1)]
    for direction in ("denoising", "noising"):
        model = ToyModel(toy)
        found = [
            path_patch(
                model, pairs(), logit_diff, sender=Z, receivers=[stop],
                direction=direction,
            )
            for stop in stops
        ]  # fmt: skip
        base = found[0].corrupted if direction == "denoising" else found[0].clean
        table = found[0].table
        each = [(one.table["value"] - base).to_numpy() for one in found]
        assert all(abs(change).min() > 1e-3 for change in each)
        whole = sum(each) + table["direct"].to_numpy()
        assert whole == pytest.approx(table["total"].to_numpy(), abs=1e-11)
        pure = table["pure_indirect"].to_numpy()
        assert pure == pytest.approx(table["indirect"].to_numpy(), abs=1e-11)


def test_what_is_not_direct_is_what_the_only_later_component_sees() -> None:
    # Without MLPs only layer 1's attention lies between; the final norm is no sum.
    found: Any = path_patch(
        ToyModel(random_toy(mlp_layers=())), pairs(), logit_diff, sender=Z,
        receivers=[Site("attn_out", 1)],
    )  # fmt: skip
    table: Any = found.table
    change = (table["value"] - found.corrupted).to_numpy()
    assert table["pure_indirect"].to_numpy() == pytest.approx(change, abs=1e-11)
    assert (table["pure_indirect"] - table["indirect"]).abs().min() > 1e-5
    together = (table["direct"] + table["indirect"]).to_numpy()
    assert together == pytest.approx(table["total"].to_numpy(), abs=1e-14)


# Random models of each family, against changes added to the stream by hand.


def float64_model(family: str) -> BridgeModel:
    return BridgeModel(tiny(family).double(), name=family)


def exact(family: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if family in TRUE_FLOAT64 else float64_inside()


def stream(name: str, layer: int, model: Model) -> Site:
    """The residual that a component reads."""
    after_attention = name.startswith("mlp") and "resid_mid" in model.shape.sites
    return Site("resid_mid" if after_attention else "resid_pre", layer)


def place(site: Site) -> tuple[int, int]:
    """Where a component writes, in a model of sequential blocks."""
    rank = {"resid_pre": 0, "resid_mid": 2, "mlp_post": 3, "mlp_out": 3}
    return site.layer, 4 if site.name == "resid_post" else rank.get(site.name, 1)


def by_hand(
    model: Model,
    patched: Tensor,
    other: Tensor,
    senders: Sequence[Site],
    receivers: Sequence[Site] | None,
    asked: Any,
) -> dict[str, Tensor]:
    """The metric under each path, by adding what senders write to the stream."""
    n = model.shape.n_layers
    end = Site("resid_post", n - 1)
    streams = [Site(name, m) for m in range(n)
               for name in ("resid_pre", "resid_mid", "resid_post", "attn_out",
                            "mlp_out") if name in model.shape.sites]  # fmt: skip
    base = model.run(patched, read=streams).cache
    source = model.run(other, read=senders).cache

    def setting(values: dict[Site, Tensor]) -> dict:
        return {site: lambda x, new=new: new for site, new in values.items()}

    def metric(values: dict[Site, Tensor]) -> Tensor:
        return logit_diff(model.run(patched, edit=setting(values)), asked)

    # Alone, each component's senders change what it writes and nothing before it.
    writes: list[tuple[Site, Tensor]] = []
    for layer, rank in sorted({place(sender) for sender in senders}):
        own = {s: source[s] for s in senders if place(s) == (layer, rank)}
        name = {0: "resid_pre", 1: "attn_out", 2: "resid_mid", 3: "mlp_out",
                4: "resid_post"}[rank]  # fmt: skip
        out = Site(name, layer)
        found = model.run(patched, read=[out], edit=setting(own)).cache[out]
        writes.append((out, found - base[out]))

    def added(at: Site, attention_too: bool = True) -> Tensor:
        """Everything written before a residual stream site."""
        total = torch.zeros_like(base[at])
        for out, change in writes:
            if place(out) <= place(at) and not (
                at.name == "resid_pre" and out.layer == at.layer and out != at
            ):
                total = total + change
        return total

    put: dict[Site, Tensor] = {}
    for receiver in receivers or ():
        if receiver.name.startswith("resid"):
            put[receiver] = base[receiver] + added(receiver)
            continue
        entry = stream(receiver.name, receiver.layer, model)
        moved = {entry: base[entry] + added(entry)}
        put[receiver] = model.run(patched, read=[receiver], edit=setting(moved)).cache[
            receiver
        ]
    all_set = {s: source[s] for s in senders}
    patched_end = model.run(patched, read=[end], edit=setting(all_set)).cache[end]
    direct = metric({end: base[end] + added(end)})
    return {
        "base": metric({}),
        "value": metric(put) if receivers else direct,
        "total": metric(all_set),
        "direct": direct,
        "pure_indirect": metric({end: patched_end - added(end)}),
    }


CASES: dict[str, tuple[list[Site], list[Site] | None]] = {
    "z to logits": ([Site("z", 1, head=2)], None),
    "z to q": ([Site("z", 0, head=1)], [Site("q", 2, head=3)]),
    "z to k, v": ([Z], [Site("k", 1, kv_head=1), Site("v", 2, kv_head=0)]),
    "z to z, mlps": ([Z], [Site("z", 1, head=2), *map(Site, ["mlp_out"] * 2, [1, 2])]),
    "q to attn_out": ([Site("q", 0, head=2)], [Site("attn_out", 2)]),
    "v to mlp": ([Site("v", 0, kv_head=1)], [Site("mlp_out", 1)]),
    "attn_out to q": ([Site("attn_out", 0)], [Q]),
    "mlp_out to attn_out": ([Site("mlp_out", 0)], [Site("attn_out", 1)]),
    "mlp_post to k": ([Site("mlp_post", 0)], [Site("k", 2, kv_head=0)]),
    "pattern to z": ([Site("pattern", 0, head=0)], [Site("z", 2, head=1)]),
    "resid_pre to mlp": ([Site("resid_pre", 1)], [Site("mlp_out", 1)]),
    "resid_post to q": ([Site("resid_post", 0)], [Site("q", 2)]),
    "resid_mid to q, mlp": ([Site("resid_mid", 0)], [Q, Site("mlp_out", 0)]),
    "z to residuals": ([Z], [Site("resid_pre", 2)]),
    "mlp_out to the end": ([Site("mlp_out", 1)], [Site("resid_post", 2)]),
    "layers apart": ([Z, Site("z", 1, head=2), Site("mlp_post", 1)], [Site("q", 2)]),
    "q's of two layers": (
        [Site("q", 0, head=1), Site("k", 1, kv_head=1), Site("z", 1, head=0)],
        [Site("mlp_out", 2), Site("q", 1, head=0)],
    ),
    "a stream on the way": ([Z, Site("mlp_out", 1)], [Site("resid_post", 1)]),
}


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.some_cases(2)
def test_every_path_equals_the_stream_kept_by_hand(family: str) -> None:
    with exact(family):
        model = float64_model(family)
        (batch,) = pairs().tokens(model)
        directions: Any = itertools.cycle(("denoising", "noising"))
        for (case, (senders, receivers)), direction in zip(
            CASES.items(), directions, strict=False
        ):
            if any(sender.name not in model.shape.sites for sender in senders):
                assert (family, senders[0].name) == ("gpt_neox", "resid_mid")
                continue
            found: Any = path_patch(
                model, pairs(), logit_diff, sender=senders, receivers=receivers,
                direction=direction,
            ).table  # fmt: skip
            base, other = batch.corrupted, batch.clean
            if direction == "noising":
                base, other = other, base
            want = by_hand(model, base, other, senders, receivers, batch)
            for name in ("value", "total", "direct", "pure_indirect"):
                start = 0 if name == "value" else want["base"]
                off = (found[name] - (want[name] - start).tolist()).abs().max()
                assert off < 1e-9, (case, direction, name)
            moved = (found["value"] - want["base"].tolist()).abs().min()
            assert moved > 1e-5, f"{case}: this path carries nothing to see"


# Against patch_sweep, and other properties that hold for every model.


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.first_case
def test_the_total_is_the_plain_patch(family: str, direction: Direction) -> None:
    model = load(family)
    table: Any = path_sweep(
        model, pairs(), logit_diff, receivers=None, direction=direction
    ).table
    for site, component in (("z", "h2"), ("mlp_out", "mlp")):
        plain: Any = patch_sweep(
            model, pairs(), logit_diff, site, direction, positions="all"
        )
        base = plain.corrupted if direction == "denoising" else plain.clean
        want = (
            plain.table if site == "mlp_out" else plain.table[plain.table["head"] == 2]
        )
        got = table[table["component"] == component]
        assert got["layer"].tolist() == want["layer"].tolist()
        total = got["total"] + got["prompt"].map(lambda n, base=base: base[n])
        assert total.to_numpy() == pytest.approx(want["value"].to_numpy(), abs=1e-4)


def test_a_sender_that_does_not_change_sends_nothing() -> None:
    own = pairs()
    corrupted = own.corrupted.clone()  # type: ignore[union-attr]
    corrupted[:, :3] = own.clean[:, :3]  # type: ignore[index]
    alike = PromptPairs(own.clean, corrupted, own.answers, own.wrong)
    for receivers in (None, [Site("q", 2, head=0), Site("mlp_out", 1)]):
        found: Any = path_patch(
            load("llama"), alike, logit_diff, sender=Site("z", 0, head=1),
            receivers=receivers, positions=[0, 2],
        )  # fmt: skip
        assert found.table[CHANGES].abs().to_numpy().max() < 1e-5
        assert found.table["effect"].abs().max() < 1e-5
        assert found.table["value"].tolist() == pytest.approx(found.corrupted, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "toy_gqa_relu"])
@pytest.mark.matrix
def test_a_pattern_is_what_its_queries_and_keys_make_it(family: str) -> None:
    # OPT's patterns can be read and not edited: reading must not edit them.
    model = load(family)
    metric = sink_attention(layer=2, head=3)
    group = model.shape.n_heads // model.shape.n_kv_heads
    found: Any = path_patch(
        model, pairs(), metric, sender=Site("mlp_out", 0),
        receivers=[Site("q", 2, head=3), Site("k", 2, kv_head=3 // group)],
    )  # fmt: skip
    change = found.table["value"] - found.corrupted
    assert change.abs().min() > 1e-3
    assert change.tolist() == pytest.approx(found.table["direct"].tolist(), abs=1e-5)
    # Between mlp_out 1 and that pattern lies nothing: all is direct.
    near: Any = path_patch(
        model, pairs(), metric, sender=Site("mlp_out", 1), receivers=None
    )
    assert near.table["path"].tolist() == ["L1.mlp_out -> metric"] * 2
    assert near.table["direct"].abs().min() > 1e-4
    for name in ("indirect", "pure_indirect"):
        assert near.table[name].abs().max() < 1e-5
    own: Any = path_patch(
        model, pairs(), metric, sender=Site("q", 2, head=3), receivers=None
    )
    assert own.table["direct"].abs().min() > 1e-3
    assert own.table["indirect"].abs().max() < 1e-5


def test_a_metric_on_a_held_output_sees_what_it_computes() -> None:
    class Norm:
        reads = frozenset({Site("mlp_out", 1)})

        def __call__(self, run: Any, prompts: Any) -> Tensor:
            (site,) = self.reads
            return run.cache[site].norm(dim=(1, 2))

    found: Any = path_patch(
        load("llama"), pairs(), Norm(), sender=Z, receivers=[Site("mlp_out", 1)]
    )
    change = found.table["value"] - found.corrupted
    assert change.abs().min() > 1e-2
    assert change.tolist() == pytest.approx(found.table["direct"].tolist(), abs=1e-5)


# The sweep.


@pytest.mark.matrix
def test_a_sweep_is_one_path_after_another_in_any_batch(monkeypatch: Any) -> None:
    model = load("toy_gqa_relu")
    receivers = [Site("q", 2, head=1), Site("mlp_out", 1)]

    def sweep() -> Any:
        return path_sweep(model, pairs(), logit_diff, receivers=receivers).table

    whole = sweep()
    both, last = " -> L2H1.q, L1.mlp_out", " -> L2H1.q"
    heads = [f"L{m}H{h}.z{both}" for m in (0, 1) for h in range(4)]
    paths = sorted([*heads, f"L0.mlp_out{both}", f"L1.mlp_out{last}"])
    for prompt in (0, 1):
        assert sorted(whole[whole["prompt"] == prompt]["path"]) == paths
    for row in whole[whole["prompt"] == 1].to_dict("records"):
        sender, to = row["path"].split(" -> ")
        one: Any = path_patch(
            model, pairs(), logit_diff, sender=Site.parse(sender),
            receivers=[Site.parse(name) for name in to.split(", ")],
        ).table.iloc[1]  # fmt: skip
        for name in ("value", *CHANGES):
            assert one[name] == pytest.approx(row[name], abs=1e-4)
    for rows in (1, 5):
        monkeypatch.setattr(
            path_passes, "rows_that_fit", lambda *a, rows=rows, **k: rows
        )
        small = sweep()
        assert small["path"].tolist() == whole["path"].tolist()
        for name in ("value", *CHANGES):
            want = whole[name].to_numpy()
            assert small[name].to_numpy() == pytest.approx(want, abs=1e-4)


def test_after_an_overrun_a_sweep_goes_on_with_less(monkeypatch: Any) -> None:
    model, passes = load("toy"), path_passes._passes
    receivers = [Site("v", 1)]
    whole = path_sweep(model, pairs(), logit_diff, receivers=receivers).table

    def small(model: Model, pairs: Any, groups: Any, ask: Any) -> Tensor:
        if len(pairs) * len(groups) > 1:
            raise torch.OutOfMemoryError("no room")
        return passes(model, pairs, groups, ask)

    monkeypatch.setattr(path_passes, "_passes", small)
    got = path_sweep(model, pairs(), logit_diff, receivers=receivers).table
    assert got["path"].tolist() == whole["path"].tolist()
    want = whole["value"].to_numpy()
    assert got["value"].to_numpy() == pytest.approx(want, abs=1e-4)


def test_results_are_drawn_saved_and_read_back(tmp_path: Any) -> None:
    import matplotlib.pyplot as plt

    rows = [torch.arange(5), torch.arange(10, 17)]
    mixed = PromptPairs(
        rows, [row + 30 for row in rows], torch.tensor([5]), torch.tensor([9])
    )
    model = load("toy")
    found: Any = path_sweep(model, mixed, logit_diff, receivers=[Site("v", 2)])
    ax: Any = found.plot()
    assert [text.get_text() for text in ax.get_xticklabels()][-1] == "mlp"
    shown: Any = ax.images[0].get_array()
    assert shown.shape == (2, 5)
    mean: Any = found.table.groupby(["layer", "component"])["effect"].mean()
    assert float(shown[1, 2]) == pytest.approx(mean[(1, "h2")])
    plt.close(ax.figure)
    again = PathSweepResult.load(found.save(tmp_path / "sweep"))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.receivers == ["L2.v"]
    one: Any = path_patch(model, mixed, logit_diff, sender=Z, receivers=None)
    assert one.table["path"].tolist() == ["L0H0.z -> logits"] * 2
    assert PathResult.load(one.save(tmp_path / "one")).clean == one.clean


# Wrong input.


@pytest.mark.parametrize(
    ("family", "sender", "receivers", "message"),
    [
        ("llama", Site("z", 1, head=0), [Site("q", 1, head=2)], "side by side"),
        ("llama", Site("z", 1, head=0), [Q], "sender L1H0.z, or is computed|side by"),
        ("llama", Q, [Site("z", 1, head=0)], "computed from it inside one block"),
        ("llama", Q, [Q], "L1H0.q is sender L1H0.q"),
        ("llama", Site("k", 1, kv_head=1), [Site("z", 1, head=3)], "inside one block"),
        ("llama", Site("z", 2, head=0), [Q], "other way: sender=L1H0.q"),
        ("llama", Site("resid_pre", 1), [Site("mlp_out", 0)], "not downstream"),
        ("gpt_neox", Site("z", 1, head=0), [Site("mlp_out", 1)], "side by side"),
        ("llama", [Z, Site("mlp_out", 2)], [Q], "not downstream of sender L2.mlp_out"),
        ("llama", Z, [Q, Site("q", 0, head=1)], "receiver L0H1.q is not downstream"),
        ("llama", Z, [Site("q", 1, head=4)], "Allowed: 0 to 3"),
        ("llama", Z, [Site("k", 1, kv_head=2)], "has 2 key-value heads"),
        ("llama", Site("z", 9, head=0), [Q], "layer=9, but this model has 3"),
        ("opt", Site("pattern", 0, head=0), None, "discards edits of pattern"),
        ("gpt_neox", Site("resid_mid", 0), None, "has no resid_mid"),
        ("llama", [], None, "no sender given"),
        ("llama", Z, [], "no receivers given.*None for the logits"),
    ],
)
def test_paths_that_can_not_be_are_refused(
    family: str, sender: Any, receivers: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        path_patch(
            load(family), pairs(), logit_diff, sender=sender, receivers=receivers
        )


def test_other_bad_input_says_what_is_allowed() -> None:
    model, own = load("toy"), pairs()
    options: dict[str, Any] = {"sender": Z, "receivers": None}
    with pytest.raises(ValueError, match="some of 0 to 6"):
        path_patch(model, own, logit_diff, positions=[7], **options)
    with pytest.raises(ValueError, match=r"path_sweep: receiver L0H0\.q is not"):
        path_sweep(model, own, logit_diff, receivers=[Site("q", 0, head=0)])
    with pytest.raises(ValueError, match="path_sweep: no receivers"):
        path_sweep(model, own, logit_diff, receivers=[])
    toy = random_toy()
    with torch.no_grad():
        toy.W_E[int(own.clean[1][2])] = torch.nan
    with pytest.raises(
        ValueError, match=r"metric of the clean run is NaN.*pairs \[1\]"
    ):
        path_patch(ToyModel(toy), own, logit_diff, **options)


def test_the_model_and_the_prompts_come_back_unchanged() -> None:
    model, own = load("llama"), pairs()
    assert isinstance(own.clean, Tensor)
    before = model.run(own.clean).logits
    path_sweep(model, own, logit_diff, receivers=[Site("attn_out", 2)])
    assert torch.equal(model.run(own.clean).logits, before)
