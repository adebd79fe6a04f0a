"""A model from its shape: a decoder of text, of text with images, or an encoder-decoder."""

import dataclasses
from typing import Any, overload

from dora_jax.errors import DoraError
from dora_jax.mesh import ShardingRules
from dora_jax.models import bart, llama, llava
from dora_jax.models.bart import Bart
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from dora_jax.models.llava import Llava, LlavaConfig
from dora_jax.models.vlbart import VLBart, VLBartConfig
from dora_jax.spec import AdapterRules

Decoder = Llama | Llava
DecoderConfig = LlamaConfig | LlavaConfig
Writer = Decoder | Bart  # whatever generates texts
WriterConfig = DecoderConfig | BartConfig
# Of whatever model it is: its parts' paths differ.
SHARDING: ShardingRules = (*llava.SHARDING, *bart.SHARDING, *llama.SHARDING)
# What a decoder alone has, and what an encoder-decoder does without.
_OF_DECODERS: dict[str, Any] = {"attention": "xla", "neftune_alpha": 0.0}


@overload
def build_model(
    config: DecoderConfig, adapters: AdapterRules | None = None, **settings: Any
) -> Decoder: ...


@overload
def build_model(
    config: WriterConfig, adapters: AdapterRules | None = None, **settings: Any
) -> Writer: ...


def build_model(
    config: WriterConfig, adapters: AdapterRules | None = None, **settings: Any
) -> Writer:
    """Return the model of a shape.

    Args:
        config: the shape, which says what kind of model it is.
        adapters: rules that say how each module is tuned; None for the plain model.
        settings: the other fields of `Llama` and `Llava`, which are the same; a `Bart` has none
            of `attention` and `neftune_alpha`.

    Raises:
        DoraError: for one of those that asks an encoder-decoder for more.
    """
    if isinstance(config, BartConfig):
        for name, usual in _OF_DECODERS.items():
            if settings.pop(name, usual) != usual:
                raise DoraError(f"{name} is for decoders alone, and this is a BART: leave it out")
        kind = VLBart if isinstance(config, VLBartConfig) else Bart
        return kind(config, adapters, **settings)  # type: ignore[arg-type]
    decoder = Llava if isinstance(config, LlavaConfig) else Llama
    return decoder(config, adapters, **settings)  # type: ignore[arg-type]


def as_decoder(config: WriterConfig) -> DecoderConfig:
    """Return the shape of a decoder, which adapters of PEFT are exchanged for.

    Raises:
        DoraError: for an encoder-decoder.
    """
    if isinstance(config, BartConfig):
        raise DoraError(
            "PEFT adapters are exchanged for decoders alone, and this is a BART: write the tuned "
            "model itself (dora-jax merge)"
        )
    return config


def untied(config: DecoderConfig) -> DecoderConfig:
    """Return the shape of the model whose head has weights of its own."""
    text = dataclasses.replace(config.text, tie_word_embeddings=False)
    return dataclasses.replace(config, text=text) if isinstance(config, LlavaConfig) else text
