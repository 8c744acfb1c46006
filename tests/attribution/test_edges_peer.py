"""Edge scores against TransformerLens's attribution patching, same conventions."""

import warnings
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)

from mechsink.attribution.edges import eap
from mechsink.attribution.wires import Wires
from mechsink.metrics import logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from tests.attribution.test_edges import PAIRS
from tests.interventions.float64 import float64_inside, peer_model

KINDS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def our_name(node: Any) -> str:
    if node.kind == "embed":
        return "input"
    if node.kind == "attn_head_out":
        return f"a{node.layer}.h{node.head}"
    if node.kind in KINDS:
        return f"a{node.layer}.h{node.head}<{KINDS[node.kind]}>"
    return "logits" if node.kind == "logits" else f"m{node.layer}"


@pytest.mark.parametrize("family", ["gpt2", "llama_mha"])
@pytest.mark.matrix
def test_eap_equals_transformer_lens(family: str) -> None:
    """TransformerLens takes the gradient at the corrupted run, and its scores say what
    patching in the clean value adds: ours of the exchanged pair, with the sign turned.
    """
    # One pair: TransformerLens's metric sees logits alone, not which pair they are of.
    clean, corrupted = PAIRS.clean[:1], PAIRS.corrupted[:1]
    answer, wrong = PAIRS.answers[:1], PAIRS.wrong[:1]
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer: Any = peer_model(family)  # with weights that take gradients
            peer.config.architectures = [type(peer).__name__]
            bridge = build_bridge_from_module(
                peer, type(peer).__name__, hf_config=peer.config
            )
            theirs = attribution_patch(
                bridge.eval(),
                clean,
                corrupted,
                lambda logits: logits[0, -1, answer[0]] - logits[0, -1, wrong[0]],
                EdgeAttributionConfig(granularity="edge"),
            )
        exchanged = PromptPairs(corrupted, clean, answer, wrong)
        ours = -eap(model, exchanged, logit_diff).matrix
    wires = Wires.of(model.shape)
    want = torch.zeros(ours.shape, dtype=torch.float64)
    for (source, target), score in theirs.edge_scores.items():
        s = wires.source_index[our_name(source)]
        want[s, wires.target_index[our_name(target)]] += score  # sums positions
    got = torch.as_tensor(ours).nan_to_num()
    assert want.abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
