"""A tiny Hugging Face model with a tokenizer, as a folder, made on the spot."""

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.models.families import SIZES


def save_tiny(folder: Path, *, uniform: bool = False) -> Path:
    """A random Llama of 3 layers and 4 heads whose tokens are characters.

    `uniform`: queries are zero, so every head attends evenly to what it sees.
    """
    alphabet = [chr(i) for i in range(32, 127)]
    words = {char: i for i, char in enumerate(["<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, "vocab_size": len(words)}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
            if uniform and "q_proj" in name:
                parameter.zero_()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
