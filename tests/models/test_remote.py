"""Models that are served elsewhere, against the same weights here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink.models.remote import RemoteModel
from mechsink.models.trace import TraceModel
from mechsink.sites import AXES, Site
from tests.models.families import tiny
from tests.models.served import Server, serve
from tests.models.test_load import word_tokenizer

TOKENS = torch.randint(0, 80, (2, 7), generator=torch.Generator().manual_seed(0))
FAMILIES = [
    "llama", "gpt2", "gptj", "opt", "bloom", "gpt_neox", "falcon", "gemma2", "granite",
]  # fmt: skip
pytestmark = pytest.mark.matrix  # nnsight's pipelines alone take seconds to import


class Pair:
    def __init__(self, family: str, folder: Path, monkeypatch: Any) -> None:
        from nnsight import TransformersModel

        own = tiny(family)
        own.save_pretrained(folder)
        words = word_tokenizer()
        self.server = Server(str(folder), word_tokenizer())
        serve(self.server, monkeypatch)
        traced = TransformersModel(str(folder), task="text-generation", tokenizer=words)
        remote = ms.load_model(traced, remote=True, name=family)
        assert isinstance(remote, RemoteModel)
        self.remote, self.here = remote, TraceModel(own, words, name=family)


@pytest.fixture(params=FAMILIES)
def pair(request: Any, tmp_path: Path, monkeypatch: Any) -> Iterator[Pair]:
    yield Pair(request.param, tmp_path, monkeypatch)


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: Any) -> Pair:
    return Pair("llama", tmp_path, monkeypatch)


def close(got: Tensor, want: Tensor, what: object = "", allowed: float = 1e-6) -> None:
    shown = want > -1e4
    off = (got - want)[shown].abs().max() / want[shown].abs().max().clamp(min=1e-30)
    assert off <= allowed, (what, float(off))


def tilt(x: Tensor) -> Tensor:
    slope = torch.linspace(0.2, 1.0, x.shape[-1])
    return torch.where(x > -1e4, x * slope, x)


@pytest.mark.some_cases(3)
def test_runs_reads_and_edits_equal_those_here(pair: Pair) -> None:
    remote, here = pair.remote, pair.here
    if pair.remote.name == "falcon":  # the server's attention can't be switched
        assert remote.shape.sites == here.shape.sites - {"pattern", "attn_scores"}
    else:
        assert remote.shape == here.shape
    assert all(p.is_meta for p in remote._traced._module.parameters())
    has = remote.shape.sites
    sites = [s for n in AXES if n in has for s in here.shape.all_sites(n)]
    want, got = here.run(TOKENS, read=sites), remote.run(TOKENS, read=sites)
    close(got.logits, want.logits)
    for site in sites:
        close(got.cache[site], want.cache[site], site)
    for site in sites:
        if site.layer != 1 or site.name in here.shape.read_only:
            continue
        part = Site(site.name, 1, head=1) if "head" in site.axes else site
        edit = {part: tilt}
        want, got = (m.run(TOKENS, edit=edit, read=[site]) for m in (here, remote))
        close(got.logits, want.logits, part)
        close(got.cache[site], want.cache[site], part)
    close(remote.w_o(1), here.w_o(1))
    assert all(p.is_meta for p in remote._traced._module.parameters())


def test_measurements_run_elsewhere(llama: Pair) -> None:
    pairs = ms.PromptPairs(
        TOKENS[:1], TOKENS[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
    )
    both = (llama.here, llama.remote)
    for site in ("resid_pre", "z"):
        want, got = (
            ms.patch_sweep(m, pairs, ms.logit_diff, site=site, progress=False)
            for m in both
        )
        values = (torch.tensor(r.table["value"].to_numpy()) for r in (got, want))
        close(*values, allowed=2e-5)
    engine = got.meta["settings"]["engine"]
    assert engine.startswith("cells") and "another machine" in engine
    want, got = (ms.sink_scores(m, TOKENS).table["score"] for m in both)
    close(torch.tensor(got), torch.tensor(want))
    heads = [Site("z", 1, head=2), Site("mlp_out", 0)]
    want, got = (
        ms.ablate(m, pairs, heads, ms.zero(), ms.logit_diff).table["ablated"]
        for m in both
    )
    close(torch.tensor(got), torch.tensor(want))
    assert ms.selfcheck(llama.remote).ok
    assert llama.remote.to_tokens("w1 w2").tolist() == [[2, 3]]


def test_what_cannot_be_done_elsewhere_is_refused_by_name(llama: Pair) -> None:
    pairs = ms.PromptPairs(
        TOKENS[:1], TOKENS[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
    )
    n = len(llama.server.requests)
    for call, hint in (
        (lambda m: ms.base_run(m, TOKENS), 'engine="cells"'),
        (lambda m: m.run(TOKENS, grad=True), "ms.patch_sweep"),
        (lambda m: ms.logit_attribution(m, pairs), "ms.patch_sweep"),
        (lambda m: ms.eap(m, pairs, ms.logit_diff), "ms.patch_sweep"),
    ):
        with pytest.raises(ValueError, match=r"runs on another machine") as error:
            call(llama.remote)
        assert hint in str(error.value)
    assert len(llama.server.requests) <= n + 6  # its shape, no run


def test_a_wrong_edit_and_a_failing_server_are_said_clearly(
    llama: Pair, monkeypatch: Any
) -> None:
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError

    _ = llama.remote.shape

    def broken(*args: Any) -> None:
        raise RemoteError("CUDA out of memory")

    monkeypatch.setattr(RemoteBackend, "request", broken)
    with pytest.raises(
        RuntimeError, match=r"llama: .*CUDA out of memory.*nnsight.stat"
    ):
        llama.remote.run(TOKENS)

    def offline(*args: Any) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(RemoteBackend, "request", offline)
    with pytest.raises(
        ConnectionError, match=r"can't be reached \(Connection refused\)"
    ):
        llama.remote.run(TOKENS)

    def refused(*args: Any) -> None:
        raise RemoteError("Failed to send request: Invalid API key")

    monkeypatch.setattr(RemoteBackend, "request", refused)
    with pytest.raises(PermissionError, match="`nnsight login`"):
        llama.remote.run(TOKENS)


def test_without_the_hub_a_model_has_no_name_to_send(
    llama: Pair, monkeypatch: Any
) -> None:
    from nnsight.modeling import huggingface

    # Kept from another request; HF_HUB_OFFLINE is set, so nothing is asked.
    monkeypatch.setattr(huggingface, "_ID_CACHE", {})
    monkeypatch.setattr(llama.remote._traced, "repo_id", "org/name")
    with pytest.raises(ConnectionError, match=r"llama: .*can't be reached"):
        _ = llama.remote.w_o(0)


def test_loading_says_what_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ValueError, match=r"no.*API key.*|.*`nnsight login`"):
        ms.load_model("meta-llama/Llama-3.1-70B", remote=True)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    with pytest.raises(ValueError, match="backend='nnsight' alone"):
        ms.load_model("org/name", remote=True, backend="transformer_lens")
    with pytest.raises(ValueError, match=r"which lies here.*hub id"):
        ms.load_model("smollm2", remote=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM, which lies here"):
        ms.load_model(tiny("llama"), remote=True)
    with pytest.raises(FileNotFoundError, match="could not be fetched from the hub"):
        ms.load_model("org/name", remote=True)
