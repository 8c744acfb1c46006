"""A tiny random vision-language model, and its image said in words.

The words: four tokens whose embeddings are what the model makes of the image, so that
a prompt of text alone gives its blocks the very same vectors.
"""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.models.families import GQA

IMAGE, WORDS = 79, (75, 76, 77, 78)
SPAN = (2, 3, 4, 5)
PROMPTS = torch.tensor([[1, 5, *[IMAGE] * 4, 7, 9, 11], [1, 5, *[IMAGE] * 4, 8, 10, 3]])


def llava(std: float = 0.25) -> tuple[Any, Tensor]:
    """LLaVA: two layers of CLIP, three of Llama; and an image of 8 x 8, 4 patches."""
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, image_size=8, patch_size=4,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**GQA), image_token_id=IMAGE,
        vision_feature_layer=-1,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std)
        table = model.get_input_embeddings().weight
        table[list(WORDS)] = vectors(model, image)
    return model, image


def vectors(model: Any, image: Tensor) -> Tensor:
    """What stands at the image's four tokens, by a hook of torch's."""
    seen: list[Tensor] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]),
        with_kwargs=True,
    )
    model(PROMPTS[:1], pixel_values=image)
    handle.remove()
    return seen[0][0, list(SPAN)]


def in_words(tokens: Tensor) -> Tensor:
    """The prompts with the image's vectors as words."""
    tokens = tokens.clone()
    tokens[:, list(SPAN)] = torch.tensor(WORDS)
    return tokens


def qwen2_vl() -> tuple[Any, dict[str, Tensor], Tensor]:
    """Qwen2-VL, an image of 4 x 4 patches that gives four tokens, and a prompt."""
    torch.manual_seed(0)
    config = hf.Qwen2VLConfig(
        text_config={
            **GQA,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
            },
        },
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2,
            "patch_size": 4, "mlp_ratio": 2,
        },
        image_token_id=IMAGE, video_token_id=73,
        vision_start_token_id=72, vision_end_token_id=71,
    )  # fmt: skip
    model = hf.Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
    inputs = {
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    tokens = torch.tensor([[1, 72, *[IMAGE] * 4, 71, 7, 9, 11]])
    return model, inputs, tokens
