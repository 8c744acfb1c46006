"""The logit lens against the models' own last layers, and models cut short."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.attribution.lens import LogitLens, logit_lens
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from tests.models.backends import BACKENDS, load
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer

CLEAN = torch.randint(3, 80, (4, 7), generator=torch.Generator().manual_seed(0))
ANSWERS = torch.tensor([5, 17, 30, 2])
PAIRS = PromptPairs(CLEAN, CLEAN, ANSWERS, ANSWERS + 40)
FEW = ("gpt2", "gemma2", "toy_gqa_relu")
SOME = [pytest.param(n, marks=() if n in FEW else pytest.mark.matrix) for n in BACKENDS]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.matrix
def test_the_last_row_is_the_models_output(name: str) -> None:
    model = load(name)
    logits = model.run(CLEAN).logits[:, -1].double()
    rows = torch.arange(4)
    found = logit_lens(model, PAIRS).table
    assert len(found) == 4 * 4  # the embedding and three layers
    last = found.groupby("prompt").last()
    assert (last["layer"] == 2).all() and (last["site"] == "resid_post").all()
    probabilities = logits.softmax(-1)
    answer = logits[rows, ANSWERS]
    for column, want in {
        "logit_diff": answer - logits[rows, ANSWERS + 40],
        "answer_logit": answer,
        "answer_prob": probabilities[rows, ANSWERS],
        "top_prob": probabilities.max(-1).values,
        "top_id": logits.argmax(-1),
        "entropy": torch.distributions.Categorical(logits=logits).entropy(),
        # Its place in the sorted vocabulary, from 1.
        "answer_rank": (logits.argsort(-1, descending=True) == ANSWERS[:, None])
        .float()
        .argmax(-1)
        + 1,
    }.items():
        np.testing.assert_allclose(last[column], want.numpy(), atol=2e-5)
    assert last["top_token"].tolist() == [str(int(t)) for t in logits.argmax(-1)]


def test_an_earlier_row_is_the_output_of_the_model_cut_there() -> None:
    """The toy without its later blocks answers what the lens says of that layer."""
    config = ToyConfig(d_vocab=80, n_layers=3, d_model=32, d_head=8, n_heads=4)
    toy = ToyTransformer(config).double()
    found = logit_lens(ToyModel(toy), PAIRS, mid=True, positions=[-1, 2]).table
    for n_layers in (0, 1, 2):
        x = toy.embed(CLEAN)
        for block in toy.blocks[:n_layers]:
            x = block(x)
        for site, resid in (("resid_post", x), ("resid_mid", None)):
            if resid is None:
                block: Any = toy.blocks[n_layers]
                resid = x + block.attn(block.ln1(x))
            want = toy.unembed(resid)
            for pos in (6, 2):
                layer = n_layers - 1 if site == "resid_post" else n_layers
                name = "resid_pre" if layer < 0 else site
                rows = found[
                    (found["layer"] == max(layer, 0))
                    & (found["site"] == name)
                    & (found["pos"] == pos)
                ]
                top = want[:, pos].softmax(-1).max(-1)
                np.testing.assert_allclose(
                    rows["top_prob"], top.values.detach(), atol=1e-12
                )
                assert rows["top_id"].tolist() == top.indices.tolist()


def test_tokens_alone_have_no_answer_columns_filled() -> None:
    found = logit_lens(load("gpt2"), CLEAN, positions=range(7)).table
    assert found["answer_prob"].isna().all() and found["logit_diff"].isna().all()
    assert found["top_prob"].between(0, 1).all()
    assert sorted(found["pos"].unique()) == list(range(7))
    no_wrong = logit_lens(load("gpt2"), PromptPairs(CLEAN, CLEAN, ANSWERS)).table
    assert (
        no_wrong["logit_diff"].isna().all() and no_wrong["answer_logit"].notna().all()
    )


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"position=7.*7 tokens.*0 to 6"):
        logit_lens(load("gpt2"), PAIRS, positions=[7])
    with pytest.raises(ValueError, match="names no position"):
        logit_lens(load("gpt2"), PAIRS, positions=[])
    with pytest.raises(ValueError, match="no resid_mid"):
        logit_lens(BridgeModel(tiny("gptj")), PAIRS, mid=True)


def test_saves_and_plots(tmp_path: Any) -> None:
    found = logit_lens(load("gpt2"), PAIRS, mid=True)
    again = LogitLens.load(found.save(tmp_path / "lens"))
    pd.testing.assert_frame_equal(again.table, found.table)
    (thick,) = [line for line in found.plot().lines if line.get_color() != "0.8"]
    of_place = found.table.groupby(["layer", "site"], sort=False)["answer_prob"].mean()
    np.testing.assert_allclose(thick.get_ydata(), of_place.to_numpy())
    assert thick.get_xdata().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    one = logit_lens(load("gpt2"), CLEAN[:1], positions=range(7))
    written = [text.get_text() for text in one.plot().texts]
    assert (
        written[:7] == one.table[one.table["site"] == "resid_pre"]["top_token"].tolist()
    )
    found.plot(column="answer_rank")
    plt.close("all")
