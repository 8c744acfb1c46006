"""Tiny random Hugging Face models, one a family, with weights wide enough to test."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GQA: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
GPT: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 80,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=4)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA)),
    "llama_mha": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)),
    "llama_mqa": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SIZES, num_key_value_heads=1)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GQA, sliding_window=5)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GQA)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GQA, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**GQA, head_dim=8, query_pre_attn_scalar=8, sliding_window=5)
    ),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GQA)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GQA)),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=80)
    ),
}


def tiny(family: str, seed: int = 0, std: float = 0.25) -> Any:
    """A random model of a family; std .25, since logits near zero hide faults."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std)
    return model
