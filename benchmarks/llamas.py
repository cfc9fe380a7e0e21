"""The models of the benchmarks: Llamas with random weights, or a folder's."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024},
    # As SmolLM2-135M.
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192},
}
MODEL_HELP = f"{', '.join(SIZES)} (random Llamas), or the folder of a model"


def build_model(name: str, device: str = "cpu") -> Any:
    """In float32; the same weights every time on the same device."""
    torch.manual_seed(0)
    if name not in SIZES:
        return AutoModelForCausalLM.from_pretrained(name).to(device)
    sizes = SIZES[name]
    heads = max(4, sizes["hidden_size"] // 64)
    settings = {"num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 4096, **sizes}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=49_152, tie_word_embeddings=True, **settings))
