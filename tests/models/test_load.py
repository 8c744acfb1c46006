"""load_model: what comes in, what is refused and with which advice."""

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.models.catalogue import available_models
from mechsink.models.resume import base_run
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer


def word_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", *(f"w{n}" for n in range(79))]
    tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_a_model_object_stays_as_it_was(tmp_path: Path) -> None:
    own = tiny("llama").train()
    weights = {name: p.clone() for name, p in own.named_parameters()}
    modules = [type(module) for module in own.modules()]
    config = own.config.to_json_string()
    attention = own.config._attn_implementation
    model = ms.load_model(own)
    tokens = torch.arange(6)[None]
    model.run(tokens, read=[ms.Site("z", 0)], edit={ms.Site("z", 1): torch.zeros_like})
    model.visit(tokens, attention=lambda seen: None)

    assert own.training
    assert [type(module) for module in own.modules()] == modules
    assert own.config.to_json_string() == config
    assert own.config._attn_implementation == attention
    for name, parameter in own.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.requires_grad
    own.save_pretrained(tmp_path)
    assert torch.equal(
        ms.load_model(tmp_path, device="cpu").run(tokens).logits,
        model.run(tokens).logits,
    )


def test_the_view_shares_the_weights() -> None:
    own = tiny("gpt2")
    model = ms.load_model(own)
    tokens = torch.arange(6)[None]
    before = model.run(tokens).logits
    with torch.no_grad():
        own.transformer.h[0].mlp.c_proj.weight.zero_()
    assert not torch.equal(model.run(tokens).logits, before)


def test_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = ms.load_model(tmp_path, device="cpu")
    tokens = model.to_tokens(["w3 w1", "w0 w9"])
    assert tokens.tolist() == [[4, 2], [1, 10]]
    assert model.to_strings(tokens[0]) == ["w3", "w1"]
    assert model.info["backend"] == "transformer_lens"
    with pytest.raises(ValueError, match=r"\[2, 1\] tokens"):
        model.to_tokens(["w3 w1", "w0"])
    with pytest.raises(ValueError, match="at least one token"):
        model.to_tokens("")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.matrix
def test_a_transformer_bridge_is_taken(family: str) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    own = tiny(family)
    tokens = torch.arange(6)[None]
    want = own(tokens).logits
    bridge = build_bridge_from_module(own, type(own).__name__, hf_config=own.config)
    model = ms.load_model(bridge)
    torch.testing.assert_close(model.run(tokens).logits, want, rtol=1e-4, atol=1e-5)
    base_run(model, tokens).resume(1, 3, torch.zeros(1, 3, 32))  # plain blocks too


def test_a_changed_bridge_is_refused() -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    own = tiny("llama")
    bridge = build_bridge_from_module(own, type(own).__name__, hf_config=own.config)
    bridge.unembed.hook_out.add_hook(lambda logits, hook: logits + 1.0)
    with pytest.raises(ValueError, match="Pass the Hugging Face model itself"):
        ms.load_model(bridge)


def test_a_toy_and_a_ready_model_are_taken() -> None:
    toy = ToyTransformer(ToyConfig(d_vocab=5)).eval()
    model = ms.load_model(toy)
    tokens = torch.tensor([[0, 1, 2]])
    assert torch.equal(model.run(tokens).logits, toy(tokens))
    assert model.to_strings(tokens[0]) == ["0", "1", "2"]
    assert ms.load_model(model) is model
    with pytest.raises(ValueError, match="without its task"):
        model.to_tokens("a")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'smollm2'"):
        ms.load_model("smolm2")
    with pytest.raises(FileNotFoundError, match=r"no folder '\./nowhere'"):
        ms.load_model("./nowhere")
    with pytest.raises(ValueError, match=r"backend='jax' .* Allowed.*'nnsight'"):
        ms.load_model("smollm2", backend="jax")
    with pytest.raises(ValueError, match="a Linear cannot be wrapped"):
        ms.load_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model.to\(device, dtype\)"):
        ms.load_model(tiny("llama"), dtype=torch.float16)


def test_a_hub_name_without_network_says_what_to_do(monkeypatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"not in the local hub cache.*smollm2"):
        ms.load_model("nobody/nothing")


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    own = tiny("llama")
    own.config.save_pretrained(tmp_path)
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(marker),)

    import pickle

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match="a pickle file, which could run any code"):
        ms.load_model(tmp_path)
    assert not marker.exists()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"could not be loaded.*save_pretrained"):
        ms.load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match=r"could not be loaded"):
        ms.load_model(tmp_path)


def test_available_models_lists_what_is_here(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "mine")
    rows = {row["name"]: row for row in available_models(tmp_path)}
    assert rows[str(tmp_path / "mine")]["ready"]
    assert "smollm2" in rows and "ORG/NAME" in rows


def test_a_broken_model_fails_its_self_check() -> None:
    own = tiny("llama")
    with torch.no_grad():
        own.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    model = BridgeModel(own, name="broken")
    with pytest.raises(ms.SelfCheckError, match=r"broken failed.*\n.*layer 1"):
        model.run(torch.arange(4)[None])
