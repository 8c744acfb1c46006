"""Models spread over devices by device_map, against the same model in one place.

Offloading to disk stands for the other devices: weights are nowhere between calls, and
accelerate's hooks bring them. Several devices at once: tests/gpu/audit.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mechsink as ms
from mechsink.attribution.gradients import gradients
from mechsink.sites import AXES
from tests.models.families import tiny

TOKENS = torch.randint(3, 75, (2, 9), generator=torch.Generator().manual_seed(0))
PAIRS = ms.PromptPairs(
    TOKENS[:1], TOKENS[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
)
PARTS = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
BACKENDS = [
    pytest.param("nnsight", marks=pytest.mark.matrix), "transformer_lens"
]  # fmt: skip


def spread(folder: Path, **places: str) -> Any:
    """A Llama whose named parts are on disk."""
    own = tiny("llama")
    own.save_pretrained(folder / "model")
    names = [*PARTS, *(f"model.layers.{n}" for n in range(3))]
    where = {name: places.get(name.split(".", 1)[-1], "cpu") for name in names}
    return own, AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=where, offload_folder=folder / "offload"
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.matrix
def test_an_offloaded_layer_changes_nothing(backend: str, tmp_path: Path) -> None:
    own, placed = spread(tmp_path, **{"layers.1": "disk"})
    assert any(p.is_meta for p in placed.parameters())
    here, there = (ms.load_model(m, backend=backend) for m in (own, placed))
    assert there.device.type == "cpu" and there.shape == here.shape
    sites = [s for n in AXES if n in here.shape.sites for s in here.shape.all_sites(n)]
    want, got = (m.run(TOKENS, read=sites) for m in (here, there))
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
    for site in sites:
        torch.testing.assert_close(
            got.cache[site], want.cache[site], rtol=1e-5, atol=1e-5
        )
    for layer in range(3):
        torch.testing.assert_close(there.w_o(layer), here.w_o(layer))
    for engine, site in (("wave", "resid_pre"), ("wave", "z"), ("cells", "pattern")):
        tables = [
            ms.patch_sweep(
                m, PAIRS, ms.logit_diff, site, engine=engine, progress=False
            ).table["value"]
            for m in (here, there)
        ]
        one, other = (torch.tensor(t.to_numpy()) for t in tables)
        torch.testing.assert_close(other, one, rtol=1e-5, atol=2e-5)
    # Replaying put every block's own way of fetching weights back.
    assert torch.equal(there.run(TOKENS).logits, got.logits)
    one, other = (ms.sink_scores(m, TOKENS).table["score"] for m in (here, there))
    torch.testing.assert_close(
        torch.tensor(other.to_numpy()), torch.tensor(one.to_numpy())
    )
    metric, at = ms.sink_attention(layer=2, head=1), [ms.Site("resid_pre", 1)]
    one, other = (gradients(m, TOKENS, metric, at)[at[0]] for m in (here, there))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"are offloaded \(model.layers.1"):
        ms.logit_attribution(there, PAIRS)


@pytest.mark.matrix
def test_inputs_go_where_the_embedding_runs(tmp_path: Path) -> None:
    own, placed = spread(tmp_path, **{"embed_tokens": "disk"})
    model = ms.load_model(placed)
    assert model.device == torch.device("cpu")
    torch.testing.assert_close(model.run(TOKENS).logits, own(TOKENS).logits.detach())


@pytest.mark.matrix
def test_load_model_spreads_what_it_loads(tmp_path: Path) -> None:
    own, _ = spread(tmp_path)
    folder = tmp_path / "model"
    model: Any = ms.load_model(folder, device_map="auto")
    torch.testing.assert_close(
        model.run(TOKENS).logits.cpu(),
        own(TOKENS).logits.detach(),
        rtol=1e-4,
        atol=1e-4,
    )
    alone = ms.load_model(folder, device_map={"": "cpu"})
    found = ms.logit_attribution(alone, PAIRS)
    assert found.table["value"].sum() == pytest.approx(found.whole[0], rel=1e-4)
    with pytest.raises(ValueError, match="both say where the model goes"):
        ms.load_model(folder, device_map="auto", device="cpu")
    with pytest.raises(ValueError, match=r"accelerate\.dispatch_model"):
        ms.load_model(own, device_map="auto")


def test_blocks_with_hooks_of_accelerates_are_left_as_they_were() -> None:
    from accelerate import dispatch_model

    own = tiny("llama")
    want = own(TOKENS).logits.detach()
    placed = dispatch_model(own, {"": "cpu"}, force_hooks=True)
    assert "_hf_hook" in vars(placed)
    model: Any = ms.load_model(placed)
    forward = [vars(b).get("forward") for b in model.plain.blocks]
    found = ms.patch_sweep(model, PAIRS, ms.logit_diff, progress=False)
    assert found.meta["settings"]["engine"] == "wave"
    assert [vars(b).get("forward") for b in model.plain.blocks] == forward
    torch.testing.assert_close(model.run(TOKENS).logits, want, rtol=1e-5, atol=1e-5)
    parts = ms.logit_attribution(model, PAIRS)
    assert parts.table["value"].sum() == pytest.approx(parts.whole[0], rel=1e-4)
