"""Exact continuation against one whole forward pass with the same change."""

from dataclasses import replace

import pytest
import torch

from mechsink.models.bridge import BridgeModel
from mechsink.models.continuation import CannotContinueError
from mechsink.models.resume import base_run
from mechsink.models.toy import ToyModel
from mechsink.sites import Site
from tests.models.backends import BACKENDS, TOYS, load, matrix
from tests.models.families import MORE, NO_BRIDGE, tiny
from toy_tasks import ToyTransformer

FAMILIES = [
    *BACKENDS,
    *(matrix(family) for family in MORE if family not in NO_BRIDGE),
    matrix("nnsight_falcon_new"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_resume_equals_a_whole_run_with_the_edit(name: str) -> None:
    model = load(name)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 80, (3, 9), generator=generator)
    base = base_run(model, tokens)
    for layer, pos in [(0, 0), (1, 4), (2, 8), (3, 2)]:
        # Four variants of prompts 2, 0, 2, 1, changed at one position.
        rows = torch.tensor([2, 0, 2, 1])
        new = torch.randn(4, model.shape.d_model, generator=generator)
        resid = base.resid[layer][rows, pos:].clone()
        resid[:, 0] = new
        got = base.resume(layer, pos, resid, rows)

        last = layer == model.shape.n_layers
        site = Site("resid_post", layer - 1) if last else Site("resid_pre", layer)

        def put(x: torch.Tensor, pos: int = pos, new: torch.Tensor = new):
            x = x.clone()
            x[:, pos] = new
            return x

        want = model.run(tokens[rows], edit={site: put}).logits[:, pos:]
        scale = want.abs().max()
        assert (got - want).abs().max() <= 2e-5 * scale, (layer, pos)


@pytest.mark.parametrize("name", ["gpt2", "llama", "toy"])
def test_resuming_unchanged_gives_the_base_logits(name: str) -> None:
    model = load(name)
    tokens = torch.arange(16).reshape(2, 8)
    base = base_run(model, tokens)
    want = model.run(tokens).logits
    for pos in (0, 3, 7):
        got = base.resume(1, pos, base.resid[1][:, pos:])
        torch.testing.assert_close(got, want[:, pos:], rtol=1e-5, atol=1e-5)


def test_the_model_is_whole_again_afterwards() -> None:
    model = BridgeModel(tiny("llama"))
    tokens = torch.arange(8)[None]
    before = model.plain.model(tokens).logits
    base_run(model, tokens).resume(1, 3, torch.zeros(1, 5, 32))
    assert torch.equal(model.plain.model(tokens).logits, before)


def test_a_prefix_cannot_be_resumed() -> None:
    toy = ToyTransformer(replace(TOYS["toy"], prefix=3)).eval()
    with pytest.raises(CannotContinueError, match="first 3 tokens of this toy see"):
        base_run(ToyModel(toy), torch.arange(8)[None])


def test_resume_says_what_is_allowed() -> None:
    base = base_run(load("toy"), torch.arange(8)[None])
    with pytest.raises(ValueError, match="layers 0 to 3"):
        base.resume(4, 0, torch.zeros(1, 8, 32))
    with pytest.raises(ValueError, match="there are 5"):
        base.resume(0, 3, torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="Pass rows="):
        base.resume(0, 3, torch.zeros(2, 5, 32))


@pytest.mark.parametrize("name", ["bloom", matrix("falcon"), matrix("falcon_rw")])
def test_as_many_rows_as_keys(name: str) -> None:
    """Where a reshape could take heads for keys: Falcon's ALiBi, once."""
    model = load(name)
    tokens = torch.randint(0, 80, (1, 6), generator=torch.Generator().manual_seed(2))
    base = base_run(model, tokens)
    new = torch.randn(6, model.shape.d_model)
    resid = base.resid[1][[0] * 6, 3:].clone()
    resid[:, 0] = new
    got = base.resume(1, 3, resid, torch.zeros(6, dtype=torch.long))

    def put(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 3] = new
        return x

    edit = {Site("resid_pre", 1): put}
    want = model.run(tokens.expand(6, -1), edit=edit).logits[:, 3:]
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()
