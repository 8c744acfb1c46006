"""Each operator's answer known from elsewhere: closed forms, loops, masks by hand."""

import math

import pytest
import torch
from torch import Tensor

from tests.toy_tasks.operators.layer import D_HEAD, D_MODEL, draw, make, show
from toy_tasks.operators import (
    OPERATORS,
    Affine,
    ClampedSum,
    Exponential,
    Features,
    Flow,
    Full,
    FullOrSparse,
    Halo,
    HeavyHitters,
    KeyBias,
    Operator,
    Pointwise,
    Pooled,
    Regions,
    RoutedHeads,
    Shards,
    ShiftedGroups,
    SigmoidGate,
    Sinkhorn,
    SinkLogit,
    SinkToken,
    Static,
    Unitary,
    Unnormalised,
    ValueBias,
    Window,
    balanced,
)
from toy_tasks.operators.balanced import (
    sinkhorn,
    squared_orthogonal,
    squared_rotations,
)
from toy_tasks.operators.normalisers import Normaliser
from toy_tasks.operators.routed_heads import balanced_so_far

N = 10


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=atol)


def scores_of(shown: object) -> Tensor:
    """Scaled dot products, from the hooked queries and keys."""
    q, k = shown.q, shown.k  # type: ignore[attr-defined]
    return q @ k.transpose(2, 3) / math.sqrt(D_HEAD)


def softmax_by_loop(scores: Tensor, seen: Tensor) -> Tensor:
    seen = seen.expand(scores.shape)
    out = torch.zeros_like(scores)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:3])):
        at = tuple(index.tolist())
        keys = seen[at].nonzero()[:, 0]
        weights = scores[at][keys].exp()
        out[at][keys] = weights / weights.sum()
    return out


def test_softmax_is_softmax() -> None:
    shown = show(make(Operator()), draw(N))
    want = softmax_by_loop(scores_of(shown), torch.ones(N, N).tril().bool())
    close(shown.pattern, want)


def test_grouped_keys_serve_several_heads() -> None:
    layer = make(Operator(), n_heads=4, n_kv_heads=2)
    shown = show(layer, draw(N))
    k = torch.einsum("bpd,hde->bhpe", shown.x, layer.W_K)
    for head in range(4):
        scores = shown.q[:, head] @ k[:, head // 2].transpose(1, 2) / D_HEAD**0.5
        causal = torch.ones(N, N).tril() == 0
        want = scores.masked_fill(causal, -torch.inf).softmax(-1)
        close(shown.pattern[:, head], want)


@pytest.mark.parametrize(
    ("operator", "weight"),
    [
        ("sigmoid", lambda s: 1 / (1 + (-s).exp())),
        ("elu", lambda s: torch.where(s > 0, s + 1, s.exp())),
        ("linear", lambda s: s),
        ("relu", lambda s: s.clamp(min=0)),
    ],
)
def test_pointwise_kernels(operator: str, weight: object) -> None:
    shown = show(make(OPERATORS[operator]), draw(N))
    want = weight(scores_of(shown)).tril()  # type: ignore[operator]
    if operator == "relu":  # over the query's rank
        want = want / torch.arange(1, N + 1)[:, None]
    close(shown.pattern, want)


def test_feature_kernels() -> None:
    shown = show(make(OPERATORS["elu-features"]), draw(N))
    q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (shown.q, shown.k))
    raw = (q @ k.transpose(2, 3) / D_HEAD**0.5).tril()
    close(shown.pattern, raw)
    summed = show(make(OPERATORS["elu-features-sum"]), draw(N)).pattern
    close(summed, raw / (raw.sum(-1, keepdim=True) + 1e-8))
    layer = make(Operator(kernel=Features("learned"), normaliser=ClampedSum()))
    with torch.no_grad():
        layer.W_Q.mul_(0.3)  # so that some sums lie under 1, where they are clamped
    shown = show(layer, draw(N))
    w1, w2 = (layer.get_parameter(f"kernel.W{n}").detach() for n in (1, 2))
    q, k = ((t @ w1).clamp(min=0) @ w2 for t in (shown.q, shown.k))
    raw = (q @ k.transpose(2, 3) / D_HEAD**0.5).tril()
    total = raw.sum(-1, keepdim=True).abs()
    assert ((total < 1).any(), (total > 1).any()) == (True, True)
    close(shown.pattern, raw / total.clamp(min=1))


def test_slots_take_their_share_of_the_softmax() -> None:
    layer = make(OPERATORS["kv-bias"])
    shown = show(layer, draw(N))
    k, v = (layer.get_parameter(f"memory.{n}").detach() for n in "kv")
    causal = torch.ones(N, N).tril().bool()
    weights = scores_of(shown).exp() * causal
    slot = (shown.q @ k.transpose(1, 2) / D_HEAD**0.5).exp()
    total = weights.sum(-1, keepdim=True) + slot
    close(shown.pattern, weights / total)
    close(shown.z, (weights @ shown.v + slot * v) / total)


def test_a_zero_key_with_a_zero_value_is_softmax1() -> None:
    layer = make(Operator(memory=KeyBias(value=False)))
    with torch.no_grad():
        layer.get_parameter("memory.k").zero_()
    plain = show(make(Operator(normaliser=SinkLogit(learned=False))), draw(N))
    shown = show(layer, draw(N))
    # Same weights in both: the layer's own parameters are drawn first.
    close(shown.pattern, plain.pattern)
    causal = torch.ones(N, N).tril()
    weights = scores_of(plain).exp() * causal
    close(plain.pattern, weights / (1 + weights.sum(-1, keepdim=True)))


def test_a_sink_token_that_repeats_a_token_doubles_it() -> None:
    layer, x = make(Operator(memory=SinkToken())), draw(N, batch=1)
    with torch.no_grad():
        layer.get_parameter("memory.x").copy_(x[0, :1])
    shown = show(layer, x)
    weights = scores_of(shown).exp().tril()
    weights[..., 0] *= 2
    close(shown.z, weights @ shown.v / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize("place", ["z", "v", "k", "q", "out"])
@pytest.mark.parametrize("per", ["element", "head"])
def test_gates_that_stand_open_change_nothing(place: str, per: str) -> None:
    if (place, per) == ("out", "head"):
        with pytest.raises(ValueError, match="already summed"):
            SigmoidGate("out", per="head")
        return
    x = draw(N)
    x[..., 0] = 1  # so that a weight there is a bias
    layer = make(Operator(gate=SigmoidGate(place, per)))  # type: ignore[arg-type]
    with torch.no_grad():
        layer.get_parameter("gate.W")[..., 0, :] = 1e4
    close(show(layer, x).out, show(make(Operator()), x).out)
    with torch.no_grad():
        layer.get_parameter("gate.W").zero_()  # every gate at one half
    half = show(layer, x)
    if place in ("z", "v", "out"):
        close(half.out, show(make(Operator()), x).out / 2)


def test_affine_begins_as_softmax_and_its_rows_sum_to_s_plus_b() -> None:
    layer, x = make(Operator(gate=Affine())), draw(N)
    own = {n: layer.get_parameter(f"gate.{n}") for n in ("w", "c", "u", "e")}
    s = 2 * (x[:, None] @ own["w"] + own["c"]).sigmoid()[..., 0].detach()
    b = (x[:, None] @ own["u"] + own["e"]).tanh()[..., 0].detach()
    pattern = show(layer, x).pattern
    close(pattern.sum(-1), s + b)
    assert (pattern < 0).any()
    layer.draw(torch.Generator())  # as it begins
    close(show(layer, x).pattern, show(make(Operator()), x).pattern)


def test_value_bias_adds_the_same_everywhere() -> None:
    layer, x = make(Operator(gate=ValueBias())), draw(N)
    added = layer.get_parameter("gate.v").detach().flatten() @ layer.W_O.flatten(0, 1)
    close(show(layer, x).out, show(make(Operator()), x).out + added.detach())


def test_uniform_is_the_running_mean() -> None:
    shown = show(make(OPERATORS["uniform"]), draw(N))
    rank = torch.arange(1, N + 1)[:, None]
    close(shown.z, shown.v.cumsum(2) / rank)


@pytest.mark.parametrize("kind", ["learned", "random", "position"])
def test_static_patterns_do_not_depend_on_the_prompt(kind: str) -> None:
    layer = make(Operator(kernel=Static(kind)))  # type: ignore[arg-type]
    one, other = (show(layer, draw(N, seed=s)).pattern for s in (1, 2))
    close(one, other)
    assert one.std() > 0.05
    trained = {n for n, p in layer.named_parameters() if p.requires_grad}
    assert ("kernel.table" in trained) == (kind == "learned")


class TestFlow:
    def test_against_the_formulas_in_loops(self) -> None:
        shown = show(make(OPERATORS["flow"]), draw(N, batch=1))
        q, k = shown.q[0, 0].sigmoid() + 1e-6, shown.k[0, 0].sigmoid() + 1e-6
        into, out, kept_in, kept_out = (torch.zeros(N).double() for _ in range(4))
        for i in range(N):
            # eps stands once on each sum, so it is left out of the summands.
            into[i] = (i + 1) / (q[i] @ (k[: i + 1] - 1e-6).sum(0).add(1e-6))
            out[i] = (i + 1) / (k[i] @ (q[: i + 1] - 1e-6).sum(0).add(1e-6))
        for i in range(N):
            ko = sum((k[j] - 1e-6) * out[j] for j in range(i + 1)) + 1e-6
            qi = sum((q[j] - 1e-6) * into[j] for j in range(i + 1)) + 1e-6
            kept_in[i] = q[i] @ ko / (i + 1)
            kept_out[i] = (k[i] @ qi / (i + 1)).clamp(-1, 1)
        want = torch.zeros(N, N).double()
        for i in range(N):
            for j in range(i + 1):
                c = (j + 1) * kept_out[j].exp() / kept_out[: j + 1].exp().sum()
                dot = (q[i] - 1e-6) @ (k[j] - 1e-6)
                a = 1 / (1 + (-kept_in[i]).exp())
                want[i, j] = a * into[i] / (i + 1) * dot * c
        close(shown.pattern[0, 0], want)

    def test_it_wants_positive_features(self) -> None:
        with pytest.raises(ValueError, match=r"Features\('sigmoid'\)"):
            Operator(normaliser=Flow())


class TestBalanced:
    def test_one_half_step_is_softmax(self) -> None:
        for form in ("prefix", "masked"):
            operator = Operator(normaliser=Sinkhorn(1, form))  # type: ignore[arg-type]
            got = show(make(operator), draw(N)).pattern
            close(got, show(make(Operator()), draw(N)).pattern)

    def test_enough_half_steps_balance_rows_and_columns(self) -> None:
        plan = sinkhorn(torch.randn(3, 7, 7, dtype=torch.float64), 1001)
        ones = torch.ones(3, 7, dtype=torch.float64)
        close(plan.sum(-1), ones)
        close(plan.sum(-2), ones)

    def test_a_causal_mask_drifts_to_the_identity(self) -> None:
        """As facts have it: smallest diagonal .53, .93, .99 at 21, 201, 2001."""
        scores = (
            torch.zeros(8, 8)
            .double()
            .masked_fill(~torch.ones(8, 8).tril().bool(), -1e9)
        )
        got = [sinkhorn(scores, n).diagonal().min().item() for n in (21, 201, 2001)]
        assert got == sorted(got)
        assert got[-1] > 0.98

    def test_targets_leave_no_column_above_uniform_attention(self) -> None:
        operator = Operator(normaliser=Sinkhorn(401, "targets"))
        columns = show(make(operator), draw(N)).pattern.sum(2)
        want = (1 / torch.arange(1, N + 1).double()).flip(0).cumsum(0).flip(0)
        close(columns, want.expand_as(columns), atol=1e-6)

    @pytest.mark.parametrize("make_u", [squared_orthogonal, squared_rotations])
    def test_squared_unitaries_are_doubly_stochastic(self, make_u: object) -> None:
        scores = torch.randn(4, 9, 9, dtype=torch.float64)
        u = make_u(scores)  # type: ignore[operator]
        assert (u.sum(-1) - 1).abs().max() < 1e-12
        assert (u.sum(-2) - 1).abs().max() < 1e-12
        assert (u >= 0).all()

    def test_rotations_one_after_another(self) -> None:
        n = 6
        scores = torch.randn(n, n, dtype=torch.float64)
        u, last = torch.eye(n, dtype=torch.float64), []
        for i in range(n):
            for j in range(i):
                turn = torch.eye(n, dtype=torch.float64)
                angle = scores[i, j].sigmoid() * torch.pi / 2
                turn[j, j] = turn[i, i] = angle.cos()
                turn[j, i], turn[i, j] = -angle.sin(), angle.sin()
                u = turn @ u
            last.append(u[i].square())
        close(squared_rotations(scores), u.square())
        close(squared_rotations(scores, every_prefix=True), torch.stack(last))

    @pytest.mark.parametrize(
        "normaliser", [Sinkhorn(5), Unitary("qr"), Unitary("givens")]
    )
    def test_a_prefix_is_balanced_by_itself(self, normaliser: object) -> None:
        import dataclasses

        layer = make(Operator(normaliser=normaliser))  # type: ignore[arg-type]
        whole = dataclasses.replace(normaliser, form="whole")  # type: ignore[type-var]
        alone = make(Operator(normaliser=whole))
        x = draw(N)
        got = show(layer, x).pattern
        for end in (1, 4, N):
            want = show(alone, x[:, :end]).pattern[..., -1, :]
            close(got[..., end - 1, :end], want)


@pytest.mark.parametrize("normaliser", [Sinkhorn(5), Unitary("qr")])
def test_balancing_again_in_the_backward_pass_changes_nothing(
    normaliser: Normaliser, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for entries in (10**9, 0):
        monkeypatch.setattr(balanced, "ENTRIES", entries)
        x = draw(N).requires_grad_()
        make(Operator(normaliser=normaliser))(x).square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert torch.equal(*found)


def rows(*lines: str) -> Tensor:
    """A mask drawn by hand: x sees, . does not."""
    return torch.tensor([[c == "x" for c in line] for line in lines])


T8 = torch.device("cpu")


class TestMasksByHand:
    def test_window_with_a_sink(self) -> None:
        want = rows(
            "x.......",
            "xx......",
            "xxx.....",
            "x.xx....",
            "x..xx...",
            "x...xx..",
            "x....xx.",
            "x.....xx",
        )
        assert torch.equal(Window(2, sinks=1).mask(8, 1, T8)[0, 0], want)

    def test_halo(self) -> None:
        want = rows(
            "x.......",
            "xx......",
            "xxx.....",
            "xxxx....",
            "...xx...",
            "...xxx..",
            "...xxxx.",
            "...xxxxx",
        )
        assert torch.equal(Halo(4, 1).mask(8, 1, T8)[0, 0], want)

    def test_shifted_groups_with_a_sink(self) -> None:
        plain, shifted = ShiftedGroups(4, 1, 0.5).mask(8, 2, T8)[0]
        assert torch.equal(
            plain,
            rows(
                "x.......",
                "xx......",
                "xxx.....",
                "xxxx....",
                "x...x...",
                "x...xx..",
                "x...xxx.",
                "x...xxxx",
            ),
        )
        assert torch.equal(
            shifted,
            rows(
                "x.......",
                "xx......",
                "x.x.....",
                "x.xx....",
                "x.xxx...",
                "x.xxxx..",
                "x.....x.",
                "x.....xx",
            ),
        )

    @pytest.mark.parametrize("stride", [2, 3])
    def test_shards_together_are_the_full_context(self, stride: int) -> None:
        masks = Shards(stride).mask(9, stride, T8)[0]
        assert torch.equal(masks.any(0), torch.ones(9, 9).tril().bool())
        assert masks.sum() < stride * 45


class TestRouted:
    def test_all_regions_are_full_attention(self) -> None:
        got = show(make(Operator(carrier=Regions(3, top=4))), draw(N)).pattern
        close(got, show(make(Operator()), draw(N)).pattern)

    def test_regions_against_a_loop(self) -> None:
        size, top = 3, 2
        shown = show(make(Operator(carrier=Regions(size, top))), draw(N, batch=1))
        q, k = shown.q[0, 0], shown.k[0, 0]
        for i in range(N):
            own = i // size
            mine = q[own * size : i + 1].mean(0)
            near = [mine @ k[r * size : (r + 1) * size].mean(0) for r in range(own)]
            best = sorted(range(own), key=lambda r: -near[r].item())[: top - 1]
            seen = [j for j in range(i + 1) if j // size in (own, *best)]
            assert shown.pattern[0, 0, i].nonzero()[:, 0].tolist() == seen

    def test_a_large_cache_is_full_attention(self) -> None:
        got = show(make(Operator(carrier=HeavyHitters(8, 4))), draw(N)).pattern
        close(got, show(make(Operator()), draw(N)).pattern)

    def test_heavy_hitters_against_a_loop(self) -> None:
        heavy, recent = 2, 2
        carrier = HeavyHitters(heavy, recent)
        shown = show(make(Operator(carrier=carrier)), draw(N, batch=1))
        scores = scores_of(shown)[0, 0]
        cache: list[int] = []
        account = dict.fromkeys(range(N), 0.0)
        for i in range(N):
            cache.append(i)
            weights = scores[i, cache].softmax(-1)
            seen = shown.pattern[0, 0, i].nonzero()[:, 0].tolist()
            assert seen == cache
            for key, paid in zip(cache, weights.tolist(), strict=True):
                account[key] += paid
            old = [j for j in cache if j <= i - recent]
            best = sorted(old, key=lambda j: -account[j])[:heavy]
            cache = sorted([*best, *(j for j in cache if j > i - recent)])

    def test_the_router_at_its_ends_is_either_model(self) -> None:
        learned = make(Operator(carrier=FullOrSparse(3, 1)))
        for bias, router in ((40.0, "full"), (-40.0, "sparse")):
            with torch.no_grad():
                learned.get_parameter("carrier.w").zero_()
                learned.get_parameter("carrier.b").fill_(bias)
            fixed = make(Operator(carrier=FullOrSparse(3, 1, router)))  # type: ignore[arg-type]
            close(show(learned, draw(N)).out, show(fixed, draw(N)).out)
        sparse = show(fixed, draw(N)).pattern
        close(sparse, show(make(Operator(carrier=Window(3, 1))), draw(N)).pattern)

    def test_a_window_of_all_leaves_the_pooled_keys_unseen(self) -> None:
        operator = Operator(memory=Pooled(2, window=N), carrier=Window(N))
        close(show(make(operator), draw(N)).out, show(make(Operator()), draw(N)).out)

    def test_pooled_keys_are_means_of_what_left_the_window(self) -> None:
        operator = Operator(memory=Pooled(2, window=4), carrier=Window(4))
        shown = show(make(operator), draw(N, batch=1))
        i, scores = 9, scores_of(shown)[0, 0]
        mean = [scores[i, b : b + 2].mean() for b in (0, 2, 4)]
        logits = torch.stack([*mean, *scores[i, 6:10]]).softmax(-1)
        spread = torch.cat([logits[:3].repeat_interleave(2) / 2, logits[3:]])
        close(shown.pattern[0, 0, i], spread)


class TestRoutedHeads:
    def test_a_uniform_router_has_a_balance_of_top(self) -> None:
        gate = RoutedHeads(shared=1, top=2)
        x = draw(20)
        routers = {"W_r": torch.zeros(D_MODEL, 6).double()}
        assert gate.load_balance(x, routers).item() == pytest.approx(2)

    def test_weights_by_hand(self) -> None:
        gate, x = RoutedHeads(shared=2, top=2), draw(5, batch=1)
        generator = torch.Generator().manual_seed(0)
        sizes = {"W_r": 4, "W_s": 2, "W_0": 2}
        own = {
            n: torch.randn(D_MODEL, s, generator=generator).double()
            for n, s in sizes.items()
        }
        got = gate.head_weights(x, own)
        for t in range(5):
            g, s, b = ((x[0, t] @ own[n]).softmax(-1) for n in ("W_r", "W_s", "W_0"))
            best = sorted(range(4), key=lambda e: -g[e].item())[:2]
            total = sum(g[e] for e in best)
            routed = [2 * b[1] * 2 * g[e] / total if e in best else 0 for e in range(4)]
            want = torch.tensor([*(2 * b[0] * 2 * s), *routed], dtype=torch.float64)
            close(got[0, t], want, atol=1e-8)

    def test_norms_choose_without_parameters(self) -> None:
        gate = RoutedHeads(shared=1, top=1, router="norm")
        layer = make(Operator(gate=gate), n_heads=4)
        assert not list(layer.gate.parameters())
        shown = show(layer, draw(N))
        best = shown.q[:, 1:].norm(dim=-1).argmax(1)
        weights = gate.head_weights(shown.x, {}, shown.q)
        assert torch.equal(weights[..., 1:].argmax(-1), best)
        close(weights.sum(-1), torch.full_like(weights[..., 0], 2))

    def test_sinkhorn_evens_out_a_lopsided_router(self) -> None:
        logits = torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0))
        logits[..., 0] += 3

        def loads(ranking: Tensor) -> Tensor:
            return ranking.argmax(-1).flatten().bincount(minlength=4) / 200

        assert loads(logits)[0] > 0.8
        balanced = loads(balanced_so_far(logits, 9))
        assert balanced.max() < 0.4
        assert balanced.min() > 0.1

    def test_too_few_heads_are_refused(self) -> None:
        with pytest.raises(ValueError, match="Take more heads"):
            make(Operator(gate=RoutedHeads(shared=1, top=2)), n_heads=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normaliser": Unnormalised()}, "overflows"),
        ({"normaliser": ClampedSum()}, "overflows"),
        (
            {"kernel": Pointwise("sigmoid"), "normaliser": Sinkhorn()},
            "exponential kernel",
        ),
        ({"kernel": Static("learned"), "memory": KeyBias()}, "no place for keys"),
        ({"normaliser": Sinkhorn(), "memory": KeyBias()}, "oblong"),
        ({"normaliser": Sinkhorn(), "carrier": Window(3)}, r"carrier=Full\(\)"),
        (
            {
                "kernel": Features("sigmoid"),
                "normaliser": Flow(),
                "carrier": Window(3),
            },
            r"carrier=Full\(\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Operator(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Pointwise, {"function": "gelu"}, "Allowed: 'sigmoid'"),
        (Features, {"phi": "exp"}, "Allowed: 'elu'"),
        (Static, {"kind": "x"}, "Allowed: 'uniform'"),
        (Window, {"window": 0, "sinks": 0}, "at least 1"),
        (ShiftedGroups, {"group": 4, "sinks": 1, "unshifted": 2.0}, "0 .every head"),
        (Sinkhorn, {"n_it": 3, "form": "x"}, "Allowed: 'prefix'"),
        (Unitary, {"kind": "x", "form": "whole"}, "Allowed: 'qr'"),
        (SigmoidGate, {"place": "x", "per": "head"}, "Allowed: 'z'"),
        (FullOrSparse, {"window": 4, "sinks": 1, "router": "x"}, "Allowed: 'learned'"),
        (RoutedHeads, {"shared": 1, "top": 0, "router": "norm"}, "at least 1"),
    ],
)
def test_bad_settings_say_what_is_allowed(
    kind: type, settings: dict[str, object], message: str
) -> None:
    part = object.__new__(kind)  # past the tests' type checker, which comes first
    for name, value in settings.items():
        object.__setattr__(part, name, value)
    with pytest.raises(ValueError, match=message):
        part.__post_init__()


def test_unknown_parts_in_a_file_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly"):
        Operator.from_json({"memory": {}})
    data = {**Operator().to_json(), "carrier": {"part": "Fulll"}}
    with pytest.raises(ValueError, match=r"Allowed: .*Full,"):
        Operator.from_json(data)


def test_full_is_the_default_carrier() -> None:
    assert Operator().carrier == Full()
    assert Operator().kernel == Exponential()
