"""A model from its shape: text alone, or text with images."""

import dataclasses
from typing import Any

from dora_jax.mesh import ShardingRules
from dora_jax.models import llama, llava
from dora_jax.models.bart import Bart
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from dora_jax.models.llava import Llava, LlavaConfig
from dora_jax.spec import AdapterRules

Decoder = Llama | Llava
DecoderConfig = LlamaConfig | LlavaConfig
Writer = Decoder | Bart  # whatever generates texts
# Of whatever model it is: its parts' paths differ.
SHARDING: ShardingRules = (*llava.SHARDING, *llama.SHARDING)


def build_model(
    config: DecoderConfig, adapters: AdapterRules | None = None, **settings: Any
) -> Decoder:
    """Return the model of a shape.

    Args:
        config: the shape, which says what kind of model it is.
        adapters: rules that say how each module is tuned; None for the plain model.
        settings: the other fields of `Llama` and `Llava`, which are the same.
    """
    kind = Llava if isinstance(config, LlavaConfig) else Llama
    return kind(config, adapters, **settings)  # type: ignore[arg-type]


def untied(config: DecoderConfig) -> DecoderConfig:
    """Return the shape of the model whose head has weights of its own."""
    text = dataclasses.replace(config.text, tie_word_embeddings=False)
    return dataclasses.replace(config, text=text) if isinstance(config, LlavaConfig) else text
