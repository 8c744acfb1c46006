"""The four measurements on three kinds of model, each against plain runs alone.

A trained Bigram-Backcopy toy, SmolLM2 on TransformerLens and a tiny Llama on nnsight:
what is expected is worked out here from `model.run`, and nothing else of mechsink.
"""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.run import Model
from tests.models.families import tiny
from toy_tasks import PRESETS, BigramBackcopy, train

MODELS = ["toy", "nnsight", pytest.param("smollm2", marks=pytest.mark.pretrained)]
N_POS = 8


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {"folder": tmp_path_factory.mktemp("toy")}  # type: ignore[dict-item]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, loaded) -> Model:
    name = request.param
    if name not in loaded:
        loaded[name] = make(name, loaded["folder"])
    return loaded[name]


def make(name: str, folder) -> Model:
    if name == "smollm2":
        return ms.load_model("smollm2")
    if name == "nnsight":
        return TraceModel(tiny("llama"), name="llama")
    preset = replace(PRESETS["bb-cpu"], steps=200, batch=32, checkpoints=(200,))
    run = train(BigramBackcopy.from_text(), preset, folder, progress=False)
    return ToyModel(run.model(), run.task)


def draw(model: Model, n: int, seed: int, n_pos: int = N_POS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.shape.d_vocab, (n, n_pos), generator=generator)


def pairs(model: Model) -> ms.PromptPairs:
    tokens = draw(model, 2, 0)
    return ms.PromptPairs(
        tokens[:1], tokens[1:], answers=torch.tensor([30]), wrong=torch.tensor([50])
    )


def logit_gap(logits: Tensor) -> float:
    return (logits[0, -1, 30] - logits[0, -1, 50]).item()


@pytest.mark.matrix
def test_patching(model: Model) -> None:
    both = pairs(model)
    clean, corrupted = draw(model, 2, 0).split(1)
    layers = sorted({0, model.shape.n_layers - 1})
    found = ms.patch_sweep(model, both, ms.logit_diff, layers=layers, progress=False)
    values = found.table.set_index(["layer", "pos"])["value"]
    scale = values.abs().max()
    for layer, pos in itertools.product(layers, (0, 3, N_POS - 1)):
        site = ms.Site("resid_pre", layer)
        source = model.run(clean, read=[site]).cache[site]

        def put(x: Tensor, pos: int = pos, source: Tensor = source) -> Tensor:
            x = x.clone()
            x[:, pos] = source[:, pos]
            return x

        want = logit_gap(model.run(corrupted, edit={site: put}).logits)
        assert values[layer, pos] == pytest.approx(want, abs=2e-5 * scale)
    at_base = logit_gap(model.run(corrupted).logits)
    assert found.corrupted[0] == pytest.approx(at_base, abs=2e-5 * scale)


def test_context_aware_mean_ablation(model: Model) -> None:
    """At every position the mean over all prompts with the same token there."""
    first, second = [5, 6, 7], [8, 9]
    rows = draw(model, 1, 2).repeat(6, 1)
    rows[:, [2, 5]] = torch.tensor(list(itertools.product(first, second)))
    prompts = ms.SlotPrompts.from_tokens(rows, [2, 5])
    site = ms.Site("resid_pre", model.shape.n_layers - 1)
    resid = model.run(rows, read=[site]).cache[site]
    want = torch.stack(
        [
            torch.stack([resid[rows[:, p] == row[p], p].mean(0) for p in range(N_POS)])
            for row in rows
        ]
    )
    means = ms.context_means(model, prompts, site.layer)
    tolerance = 2e-5 * float(want.abs().max())
    torch.testing.assert_close(means.values, want, rtol=0, atol=tolerance)


def test_logit_attribution(model: Model) -> None:
    found = ms.logit_attribution(model, pairs(model))
    want = logit_gap(model.run(draw(model, 2, 0)[:1]).logits)
    total = found.table["value"].sum()
    scale = found.table["value"].abs().max()
    assert total == pytest.approx(want, abs=1e-4 * scale)
    n_parts = model.shape.n_layers * (model.shape.n_heads + 1)
    assert n_parts < len(found.table) <= n_parts + 4  # embeddings, biases


def test_active_dormant(model: Model) -> None:
    n_layers = model.shape.n_layers
    domains = {"a": draw(model, 3, 4), "b": draw(model, 3, 5)}
    head = (n_layers - 1, 0)
    found = ms.active_dormant(model, domains, n_pos=N_POS, confirm=[head])
    table = found.table.set_index(["layer", "head"])
    site = ms.Site("pattern", head[0])
    edit = {ms.Site("z", head[0], head=0): torch.zeros_like}
    for name, tokens in domains.items():
        pattern = model.run(tokens, read=[site]).cache[site]
        rests = pattern[:, 0, 1:, 0].mean().item()
        assert table.loc[head, name] == pytest.approx(rests, abs=1e-5)
        losses = partial(loss, tokens)
        without = losses(model.run(tokens, edit=edit).logits)
        lost = without - losses(model.run(tokens).logits)
        assert table.loc[head, f"zeroed_{name}"] == pytest.approx(lost, abs=1e-4)
    assert len(table) == n_layers * model.shape.n_heads


def loss(tokens: Tensor, logits: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT, tokens[:, 1:]).item()
