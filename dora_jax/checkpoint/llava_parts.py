"""A LLaVA put together from a vision tower and a language model, its projector new or from a file.

This is what LLaVA's first stage of training starts from. The language model gets one more token,
at whose places images stand, where it does not have it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.checkpoint.folder import check_free_name
from dora_jax.checkpoint.llava import read_processor, read_projector, write_llava_folder
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llava import LlavaConfig, Projector
from dora_jax.partition import Params


def join_parts(
    vision: Path,
    language: str | Path,
    out: Path,
    *,
    projector: Path | None = None,
    feature_layer: int = -2,
    pad: bool = True,
    seed: int = 0,
    dtype: str = "float32",
) -> list[str]:
    """Write a LLaVA folder.

    Args:
        vision: a folder with a vision tower: CLIP's, SigLIP's, or another LLaVA's.
        language: a model of the LLaMA family, as `load_pretrained` takes it.
        out: the folder to write; must not exist, or be empty.
        projector: safetensors of one that was trained (`read_projector`); None makes a new one.
        feature_layer: of the tower, whose output the projector gets; -2 is LLaVA's.
        pad: whether images are made square by a margin, as LLaVA-1.5 does; else they are cropped
            or stretched as the tower's own processor says.
        seed: of a new projector.
        dtype: of the written weights.

    Returns:
        What was done, in words.

    Raises:
        DoraError: when a part cannot be read or does not fit, or the folder cannot be written.
    """
    check_free_name(out)
    if not vision.is_dir():
        raise DoraError(
            f"{vision}: no such folder; fetch a tower first, such as: hf download "
            "openai/clip-vit-large-patch14-336 --local-dir clip-vit-large-patch14-336"
        )
    tower, tower_params = read_vision_folder(vision)
    base = load_pretrained(language)
    if not isinstance(base.config, LlamaConfig):
        raise DoraError(f"{language}: sees already; name a model that reads text alone")
    tokenizer, token = base.tokenizer.with_special_token(IMAGE)
    text, text_params = _with_token(base.config, base.params, token)
    try:
        config = LlavaConfig(
            vision=tower,
            text=text,
            image_token_id=token,
            feature_layers=(feature_layer,),
            first_token=not tower.class_token,
        )
    except ValueError as error:
        raise DoraError(f"{vision}: {error}") from None
    params = {
        "vision_tower": tower_params,
        "multi_modal_projector": (
            _new_projector(config, seed) if projector is None else read_projector(projector, config)
        ),
        "language_model": text_params,
    }
    processor = dataclasses.replace(read_processor(vision, tower), pad=pad)
    write_llava_folder(
        out, config, params, tokenizer, dtype, processor=processor, generation=base.generation
    )
    made = "a new one" if projector is None else str(projector)
    return [
        f"LLaVA written to {out}",
        f"  vision tower: {vision}, features of layer {feature_layer}",
        f"  projector: {made}",
        f"  language model: {base.source}",
        f"  an image is {config.image_tokens} tokens {IMAGE} (id {token})",
    ]


def _new_projector(config: LlavaConfig, seed: int) -> Params:
    wide = len(config.feature_layers) * config.vision.hidden_size
    dense: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    new = Projector(config, dense).init(jax.random.key(seed), jnp.zeros((1, wide)))
    return jax.tree.map(np.asarray, new["params"])


def _with_token(config: LlamaConfig, params: Params, token: int) -> tuple[LlamaConfig, Params]:
    """Return a language model that has a token, which says nothing: the mean of all others."""
    if token < config.vocab_size:
        return config, params
    more = token + 1 - config.vocab_size
    changed = dict(params)
    embedding = np.asarray(params["embed_tokens"]["embedding"])
    mean = np.repeat(embedding.mean(axis=0, keepdims=True), more, axis=0)
    changed["embed_tokens"] = {"embedding": np.concatenate([embedding, mean])}
    if not config.tie_word_embeddings:
        head = np.asarray(params["lm_head"]["kernel"])
        mean = np.repeat(head.mean(axis=1, keepdims=True), more, axis=1)
        changed["lm_head"] = {"kernel": np.concatenate([head, mean], axis=1)}
    return dataclasses.replace(config, vocab_size=token + 1), changed
