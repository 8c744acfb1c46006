"""Streaming against slow loops of its own, whole forward passes, and slots by hand."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsink.models.bridge import BridgeModel
from mechsink.models.cache_policies import (
    Dense,
    HeavyHitters,
    Policy,
    SinkWindow,
    Window,
    evict_range,
)
from mechsink.models.generation import generate
from mechsink.models.stream_losses import stream_losses, window_losses
from mechsink.models.streaming import Stream
from tests.interventions.float64 import float64_inside
from tests.models.backends import load
from tests.models.families import tiny
from toy_tasks.operators.parts import Heads
from toy_tasks.operators.routed import HeavyHitters as ToyHeavyHitters

TOKENS = torch.tensor([[i * i * 7 % 79 for i in range(3, 29)]])  # 26 tokens
STREAMING = ["llama", "llama_mha", "qwen3", "gpt_neox"]
MORE = ["llama_mqa", "qwen2", "olmo2", "phi3"]


@pytest.fixture
def exact() -> Iterator[BridgeModel]:
    """A grouped-query Llama, float64 all the way through."""
    with float64_inside():
        yield BridgeModel(tiny("llama").double(), name="exact")


def one_layer() -> BridgeModel:
    model: Any = tiny("llama")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    return BridgeModel(model.double(), name="one layer")


def whole(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.plain.model(tokens, use_cache=False).logits


# Slots.


def test_slots_by_hand() -> None:
    assert SinkWindow(2, 3).keep(5) == [0, 1, 2, 3, 4]
    assert SinkWindow(2, 3).keep(6) == [0, 1, 3, 4, 5]
    assert SinkWindow(2, 3).keep(8) == [0, 1, 5, 6, 7]
    assert Window(3).keep(5) == [2, 3, 4]
    assert Dense().keep(4) == [0, 1, 2, 3]
    assert set(range(2005)) - set(SinkWindow(4, 2000).keep(2005)) == {4}


@pytest.mark.parametrize("policy", [Window(4), SinkWindow(1, 3), SinkWindow(3, 2)])
def test_evicting_once_is_evicting_after_every_token(policy: Policy) -> None:
    held: list[int] = []
    for token in range(12):
        held.append(token)
        held = [held[slot] for slot in policy.keep(len(held))]
    late = [5, 6, 7, 8, 9, 10, 11]
    start = [slot for slot in range(12) if slot < policy.n_sinks]
    assert policy.size is not None
    assert held == start + late[-(policy.size - policy.n_sinks) :]
    assert held == policy.keep(12)


def test_making_room_by_hand() -> None:
    policy = SinkWindow(2, 3)
    assert policy.evict_for_space(5, 0) == [0, 1, 2, 3, 4]
    assert policy.evict_for_space(4, 1) == [0, 1, 2, 3]
    assert policy.evict_for_space(5, 2) == [0, 1, 4]
    assert policy.evict_for_space(5, 3) == [0, 1]
    assert Dense().evict_for_space(9, 50) == list(range(9))
    with pytest.raises(ValueError, match="Allowed: 0 to 3, the slots that are not"):
        policy.evict_for_space(5, 4)


def test_dropping_a_range_by_hand() -> None:
    assert evict_range(6, 1, 3) == [0, 3, 4, 5]
    assert evict_range(3, 0, 3) == []
    with pytest.raises(ValueError, match="0 <= start <= stop <= 3"):
        evict_range(3, 2, 4)


def test_heaviest_slots_by_hand() -> None:
    account = torch.tensor([[0.1, 0.9, 0.2, 0.5, 0.3, 0.0], [0.9, 0, 0.1, 0.8, 0, 7]])
    kept = HeavyHitters(recent=2, heavy=2).keep_heaviest(account)
    assert kept.tolist() == [[1, 3, 4, 5], [0, 3, 4, 5]]
    kept = HeavyHitters(recent=2, heavy=1, sinks=1).keep_heaviest(account)
    assert kept.tolist() == [[0, 1, 4, 5], [0, 3, 4, 5]]
    kept = HeavyHitters(recent=3, heavy=3).keep_heaviest(account)
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    with pytest.raises(ValueError, match="keep_heaviest"):
        HeavyHitters(recent=2, heavy=2).keep(5)


def test_heavy_hitters_keep_what_the_toy_carrier_keeps() -> None:
    torch.manual_seed(0)
    n, n_heads = 20, 3
    scores = 2 * torch.randn(1, n_heads, n, n, dtype=torch.float64)
    blank = torch.zeros(1, n_heads, n, 4, dtype=torch.float64)
    heads = Heads(q=blank, k=blank, v=blank, x=torch.zeros(1, n, 12).double())
    seen = ToyHeavyHitters(heavy=3, recent=4).views(heads, scores, {})[0][0]
    policy = HeavyHitters(recent=4, heavy=3)
    for head in range(n_heads):
        held, account = [], torch.zeros(0, dtype=torch.float64)
        for i in range(n):
            held.append(i)
            assert seen[0, head, i].nonzero()[:, 0].tolist() == held
            paid = scores[0, head, i, held].softmax(-1)
            account = torch.cat([account, torch.zeros(1).double()]) + paid
            kept = policy.keep_heaviest(account)
            held, account = [held[slot] for slot in kept], account[kept]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinkWindow(-1, 4), "sinks=-1. Allowed: 0 or more"),
        (lambda: Window(0), "window=0. Allowed: 1 or more"),
        (lambda: HeavyHitters(recent=0), "recent=0. Allowed: 1 or more"),
    ],
)
def test_sizes_are_checked(make: Callable[[], Policy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Against whole forward passes.


@pytest.mark.parametrize(
    "name", [*STREAMING, *(pytest.param(n, marks=pytest.mark.matrix) for n in MORE)]
)
def test_without_eviction_it_is_the_models_own_forward_pass(name: str) -> None:
    model = load(name)
    tokens = torch.cat([TOKENS, TOKENS.flip(1)])
    stream = Stream(model, [Dense(), SinkWindow(4, 60 - 34), Window(59)])
    got = [stream.step(part) for part in tokens.split([1, 1, 5, 19], dim=1)]
    want = whole(model, tokens)
    assert (torch.cat(got, dim=2) - want).abs().max() < 1e-4 * want.abs().max()
    assert stream.slots == [26, 26, 26] and stream.n_seen == 26


@pytest.mark.matrix
def test_without_eviction_it_is_exact(exact: BridgeModel) -> None:
    want = whole(exact, TOKENS)
    for policy in (Dense(), SinkWindow(4, 22), HeavyHitters(13, 13)):
        stream = Stream(exact, policy)
        one_by_one = [stream.step(t) for t in TOKENS.split(1, dim=1)]
        assert (torch.cat(one_by_one, 2)[0] - want).abs().max() < 1e-10


def test_in_one_layer_it_is_a_forward_pass_of_the_kept_tokens() -> None:
    # Keys and values of a first layer hold no context, so nothing else matters.
    with float64_inside():
        model = one_layer()
        stream = Stream(model, [SinkWindow(2, 4), Window(6)])
        got = stream.step(TOKENS[:, :11]), stream.step(TOKENS[:, 11:])
        logits = torch.cat(got, dim=2)[:, 0]
        for t in range(26):
            seen = TOKENS[:, : t + 1]
            if t > 6:
                sinks = torch.cat([TOKENS[:, :2], TOKENS[:, t - 4 : t + 1]], dim=1)
                want = torch.cat([sinks, TOKENS[:, t - 6 : t + 1]])
            else:
                want = torch.cat([seen, seen])
            assert (logits[:, t] - whole(model, want)[:, -1]).abs().max() < 1e-10


def test_slots_dropped_by_hand_are_gone() -> None:
    with float64_inside():
        model = one_layer()
        stream = Stream(model, SinkWindow(2, 4))
        stream.step(TOKENS[:, :6])
        stream.evict_range(1, 3)
        logits = stream.step(TOKENS[:, 6:7])[0, :, -1]
        kept = TOKENS[:, [0, 3, 4, 5, 6]]
        assert (logits - whole(model, kept)[:, -1]).abs().max() < 1e-10
        stream.evict_for_space(3)  # of 0, 3, 4, 5, 6: two sinks and the last one
        assert stream.slots == [3]
        logits = stream.step(TOKENS[:, 7:10])[0, :, -1]
        kept = TOKENS[:, [0, 3, 6, 7, 8, 9]]
        assert (logits - whole(model, kept)[:, -1]).abs().max() < 1e-10
        assert stream.slots == [6]


# Against a slow loop, written without the code's tensors.


def slow_stream(model: Any, tokens: list[int], drop: Callable[[list], int | None]):
    """Logits of a Llama, one token, layer and head at a time.

    A cache is a list of [key before rotation, value, account]; `drop` names the entry
    that goes after a token, or None.
    """
    config, weights = model.config, dict(model.named_parameters())
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads
    d_head = config.hidden_size // n_heads
    angles = model.model.rotary_emb.inv_freq.double()
    caches: dict[tuple[int, int], list] = {}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean() + config.rms_norm_eps).sqrt() * weights[name]

    def turn(x: Tensor, position: int) -> Tensor:
        z = torch.complex(x[: d_head // 2], x[d_head // 2 :])
        z = z * torch.exp(1j * position * angles)
        return torch.cat([z.real, z.imag])

    logits = []
    for token in tokens:
        x = weights["model.embed_tokens.weight"][token]
        for layer in range(config.num_hidden_layers):
            at = f"model.layers.{layer}."
            h = norm(x, f"{at}input_layernorm.weight")
            q, k, v = (
                (weights[f"{at}self_attn.{n}_proj.weight"] @ h).split(d_head)
                for n in "qkv"
            )
            z = []
            for kv in range(n_kv):
                cache = caches.setdefault((layer, kv), [])
                cache.append([k[kv], v[kv], 0.0])
                for head in range(kv * n_heads // n_kv, (kv + 1) * n_heads // n_kv):
                    query = turn(q[head], len(cache) - 1)
                    scores = [
                        math.exp(float(query @ turn(entry[0], slot)) / d_head**0.5)
                        for slot, entry in enumerate(cache)
                    ]
                    shares = [score / sum(scores) for score in scores]
                    z.append(sum(a * e[1] for a, e in zip(shares, cache, strict=True)))
                    for share, entry in zip(shares, cache, strict=True):
                        entry[2] += share
                gone = drop(cache)
                if gone is not None:
                    del cache[gone]
            x = x + weights[f"{at}self_attn.o_proj.weight"] @ torch.cat(z)
            h = norm(x, f"{at}post_attention_layernorm.weight")
            gate, up, down = (
                weights[f"{at}mlp.{n}_proj.weight"] for n in ("gate", "up", "down")
            )
            x = x + down @ (torch.nn.functional.silu(gate @ h) * (up @ h))
        logits.append(weights["lm_head.weight"] @ norm(x, "model.norm.weight"))
    return torch.stack(logits)


def drop_after_sinks(sinks: int, size: int) -> Callable[[list], int | None]:
    return lambda cache: sinks if len(cache) > size else None


def drop_lightest(sinks: int, heavy: int, recent: int) -> Callable[[list], int | None]:
    def drop(cache: list) -> int | None:
        if len(cache) <= sinks + heavy + recent:
            return None
        return min(range(sinks, len(cache) - recent), key=lambda i: cache[i][2])

    return drop


@torch.no_grad()
def test_every_policy_is_its_slow_loop(exact: BridgeModel) -> None:
    loops = {
        Window(5): drop_after_sinks(0, 5),
        SinkWindow(2, 3): drop_after_sinks(2, 5),
        SinkWindow(1, 7): drop_after_sinks(1, 8),
        HeavyHitters(recent=3, heavy=3): drop_lightest(0, 3, 3),
        HeavyHitters(recent=2, heavy=2, sinks=1): drop_lightest(1, 2, 2),
    }
    stream = Stream(exact, list(loops))
    got = torch.cat([stream.step(t) for t in TOKENS.split([7, 1, 18], 1)], dim=2)
    for row, drop in enumerate(loops.values()):
        want = slow_stream(exact.plain.model, TOKENS[0].tolist(), drop)
        assert (got[row, 0] - want).abs().max() < 1e-9, list(loops)[row]
    assert stream.slots == [5, 5, 8, 6, 5]


@pytest.mark.matrix
def test_pieces_are_what_token_by_token_is(exact: BridgeModel) -> None:
    policies = [Window(5), SinkWindow(2, 3), SinkWindow(4, 9), Dense()]
    tokens = torch.cat([TOKENS, TOKENS.flip(1)])
    single = Stream(exact, policies)
    want = torch.cat([single.step(t) for t in tokens.split(1, dim=1)], dim=2)
    for sizes in ([26], [3, 3, 20], [1, 12, 13], [6, 6, 6, 8]):
        stream = Stream(exact, policies)
        got = torch.cat([stream.step(t) for t in tokens.split(sizes, 1)], dim=2)
        assert (got - want).abs().max() < 1e-10
        assert stream.slots == [5, 5, 13, 26]


def test_memory_stops_growing_when_the_cache_is_full() -> None:
    stream = Stream(load("llama"), [SinkWindow(2, 6), HeavyHitters(4, 4), Dense()])
    held = []
    for token in TOKENS.split(1, dim=1):
        stream.step(token)
        held.append(stream.n_bytes)
    slot = 3 * 2 * 2 * 8 * 4  # layers, k and v, heads, d_head, float32
    account = 3 * 2 * 4
    assert [h[0] for h in held] == [slot * min(n, 8) for n in range(1, 27)]
    assert held[-1][1:] == [(slot + account) * 8, slot * 26]


# Losses and generation.


@pytest.mark.parametrize("piece", [1, 4])
def test_losses_are_of_the_next_token(piece: int) -> None:
    model = load("llama")
    found = list(stream_losses(model, TOKENS[0], [Dense(), Window(30)], piece))
    losses = torch.cat([part.losses for part in found], dim=1)
    want = -whole(model, TOKENS)[0, :-1].log_softmax(-1)
    want = want[torch.arange(25), TOKENS[0, 1:]]
    torch.testing.assert_close(losses, want.expand(2, -1), rtol=1e-4, atol=1e-4)
    assert [part.start for part in found] == list(range(0, 25, piece))


def test_windows_read_anew_are_runs_of_slices() -> None:
    model = load("llama")
    ends = [6, 9, 20, 25]
    got = torch.cat(list(window_losses(model, TOKENS[0], ends, 6)))
    for end, loss in zip(ends, got, strict=True):
        logits = model.run(TOKENS[:, end - 6 : end]).logits[0, -1]
        want = -logits.log_softmax(-1)[TOKENS[0, end]]
        assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    with pytest.raises(ValueError, match="ends from 6 to 25"):
        next(window_losses(model, TOKENS[0], [5], 6))


def test_dense_generation_is_plain_generation() -> None:
    model = load("llama")
    want = generate(model, TOKENS[:, :9], 8)
    stream = Stream(model, Dense())
    stream.step(TOKENS[:, :9])
    assert torch.equal(stream.generate(5), want.new[:, :5])
    assert torch.equal(stream.generate(3), want.new[:, 5:])


def test_generation_goes_on_beyond_the_context() -> None:
    model = load("llama")  # made for 64 tokens
    stream = Stream(model, SinkWindow(2, 6))
    stream.step(TOKENS)
    assert stream.generate(70).shape == (1, 70)
    assert stream.slots == [8] and stream.n_seen == 96
    with pytest.raises(ValueError, match=r"a prompt first: stream\.step"):
        Stream(model, SinkWindow(2, 6)).generate(3)


# Refusals.


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "gptj", "toy"])
def test_what_has_no_rotary_positions_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*can't stream: .*rotary"):
        Stream(load(name), Window(4)).step(TOKENS)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_models_own_window_bounds_the_cache(name: str) -> None:
    model = load(name)  # some or all layers see 5 tokens
    with pytest.raises(ValueError, match="caches of at most 4 slots"):
        Stream(model, Window(5)).step(TOKENS)
    with pytest.raises(ValueError, match="caches of at most 4 slots"):
        Stream(model, Dense()).step(TOKENS)
    if name == "mistral":  # every layer's window is the cache's
        got = Stream(model, Window(4)).step(TOKENS)[0]
        want = whole(model, TOKENS)
        assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_caches_beyond_the_context_are_refused() -> None:
    model = load("llama")
    with pytest.raises(ValueError, match="caches of at most 63 slots"):
        Stream(model, Window(64))
    stream = Stream(model, Dense())
    stream.step(TOKENS.repeat(1, 2))
    with pytest.raises(ValueError, match="would hold 78 tokens"):
        stream.step(TOKENS)
    with pytest.raises(ValueError, match="at least one"):
        Stream(model, [])


def test_a_family_that_is_misread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechsink.models.slot_cache import Rotation

    turned = Rotation.__call__
    monkeypatch.setattr(
        Rotation, "__call__", lambda self, x, at: turned(self, x.flip(-1), at)
    )
    model = BridgeModel(tiny("llama"), name="fresh")
    with pytest.raises(ValueError, match="does not give its own logits"):
        Stream(model, Window(4)).step(TOKENS)


def test_the_model_is_left_as_it_was() -> None:
    model = load("llama")
    before = whole(model, TOKENS)
    Stream(model, [Window(4), HeavyHitters(2, 2)]).step(TOKENS)
    assert torch.equal(whole(model, TOKENS), before)
