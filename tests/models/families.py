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


SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
FALCON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MORE: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            hidden_size=32, num_layers=3, num_heads=4, vocab_size=80,
            max_position_embeddings=64, window_size=5, bos_token_id=1, eos_token_id=2,
            attention_types=[[["global", "local", "global"], 1]],
        )
    ),
    "bigcode": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GQA, head_dim=8)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **GQA, head_dim=8, query_pre_attn_scalar=8, sliding_window=5,
            layer_types=SLIDING,
        )
    ),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(
            **GQA, residual_multiplier=0.22, logits_scaling=4.0,
            embedding_multiplier=3.0, attention_multiplier=0.3,
        )
    ),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GQA, logit_scale=0.5)),
    "cohere2": lambda: hf.Cohere2ForCausalLM(
        hf.Cohere2Config(**GQA, sliding_window=5, layer_types=SLIDING)
    ),
    "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**GQA)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**GQA)),
    "stablelm": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**GQA)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, **EXPERTS)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(
            **GQA, head_dim=8, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=24,
        )
    ),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **GQA, **EXPERTS, head_dim=8, sliding_window=5, layer_types=SLIDING,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    ),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)),
    # Its sdpa differs from its eager code under ALiBi (facts: trap 9).
    "falcon_rw": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(
            **FALCON, multi_query=False, parallel_attn=False, alibi=True, bias=True,
            attn_implementation="eager",
        )
    ),
    "falcon_new": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)
    ),
}  # fmt: skip
"""Families beside the first, for what must hold of all."""
NO_BRIDGE = ("falcon_new",)
"""TransformerLens 4.3 splits its queries wrongly: nnsight alone reads it."""


def tiny(family: str, seed: int = 0, std: float = 0.25) -> Any:
    """A random model of a family; std .25, since logits near zero hide faults."""
    torch.manual_seed(seed)
    model = (FAMILIES | MORE)[family]().eval()
    if family in ("mixtral", "qwen3_moe"):
        model.set_experts_implementation("eager")  # the others refuse float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std)
    return model
