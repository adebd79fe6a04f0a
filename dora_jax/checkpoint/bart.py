"""BART in Hugging Face folders, and VL-BART in such of its own: config, names, weights.

`transformers` has no VL-BART. Its folders here are those of BART, of model type `vl_bart`, with the
visual embedding's shape in the config and its tensors under their published names.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.folder import (
    AGAIN,
    MAX_SHARD_BYTES,
    check_tensors,
    new_model_folder,
    open_weights,
    read_weights,
)
from dora_jax.checkpoint.hf import check_tied_head, read_generation_config, write_generation_config
from dora_jax.checkpoint.names import Tensor, parse_dtype
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.bart import POSITION_OFFSET
from dora_jax.models.bart_config import SIZES, BartConfig
from dora_jax.models.vlbart import BOX_SIZE, VLBartConfig
from dora_jax.partition import BUFFER

ARCHITECTURES = {"bart": "BartForConditionalGeneration", "vl_bart": "VLBart"}
# As it is written, and in the files of a bare `BartModel`, of which BART-base's are.
_PREFIXES = ("model.", "")
# The one embedding, by all of the names that files have for it; the head is never prefixed.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"
_LOGITS_BIAS = "final_logits_bias"
_WRITTEN = (*SIZES, "scale_embedding", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_VISUAL = ("feature_size", "max_images", "image_tokens", "layout", "pooling")
# What a `config.json` may say of generation.
_GENERATION = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_repeat_ngram_size",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "min_length",
    "max_length",
)
# Settings with one value that is supported; early files spell out what their relatives differ in.
_FIXED = {
    "activation_function": "gelu",
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
}


class BartFolder(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the shape.
        params: the parameters that `Bart` takes.
        tokenizer: its tokenizer.
        generation: its `generation_config.json`; where it has none, what its `config.json` says of
            generation, as those of earlier days did.
    """

    config: BartConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    generation: dict[str, Any]


def is_bart(folder: Path) -> bool:
    """Whether a folder holds a BART, or a VL-BART."""
    return hf_config.read_raw(folder / hf_config.FILE).get("model_type") in ARCHITECTURES


def read_bart_config(path: Path) -> BartConfig:
    """Read a `config.json` of BART, or of VL-BART.

    Raises:
        DoraError: when it is missing or broken, or describes what is not supported.
    """
    raw = hf_config.read_raw(path)
    if raw.get("model_type") not in ARCHITECTURES:
        allowed = ", ".join(map(repr, ARCHITECTURES))
        raise DoraError(f"{path}: a model of type {raw.get('model_type')!r}; supported: {allowed}")
    sees = raw["model_type"] == "vl_bart"
    kind, sizes = (VLBartConfig, (*SIZES, *_VISUAL)) if sees else (BartConfig, SIZES)
    for name, only in _FIXED.items():
        if raw.get(name, only) != only:
            raise DoraError(
                f"{path}: {name} {raw[name]!r} is not supported; the one that is: {only!r}"
            )
    names = (*_WRITTEN, *_VISUAL) if sees else _WRITTEN
    given = {name: raw[name] for name in names if raw.get(name) is not None}
    lacking = [name for name in sizes if name not in given]
    if lacking:
        raise DoraError(f"{path}: lacks {', '.join(lacking)}. {AGAIN}")
    ends = raw.get("eos_token_id", 2)
    try:
        return kind(**given, eos_token_id=tuple(ends) if isinstance(ends, list) else (ends,))
    except (TypeError, ValueError) as error:
        raise DoraError(f"{path}: {error}. {AGAIN}") from None


def bart_tensors(config: BartConfig, prefix: str = _PREFIXES[0]) -> list[Tensor]:
    """Return every kind of tensor of a model.

    Args:
        config: its shape.
        prefix: before its names in files, with a dot at the end; not before the head's.
    """
    c = config
    D = c.d_model

    def one(module: str, ours: str, hf: str, shape: tuple[int, ...], layers: int = 0) -> Tensor:
        numbered = module.replace("/layers/", "/layers/{n}/") if layers else module
        name = f"{prefix}{numbered.replace('/', '.')}.{hf}"
        return Tensor(f"{module}/{ours}", name, "", shape, layers=layers)

    def norm(module: str, layers: int = 0) -> list[Tensor]:
        names = (("scale", "weight"), ("bias", "bias"))
        return [one(module, ours, hf, (D,), layers) for ours, hf in names]

    def dense(module: str, layers: int, *shape: int) -> list[Tensor]:
        kernel = one(module, "kernel", "weight", shape, layers)
        return [kernel, one(module, "bias", "bias", shape[1:], layers)]

    table = [
        Tensor(f"{_LOGITS_BIAS}/{BUFFER}", _LOGITS_BIAS, "", (1, c.vocab_size)),
        one("shared", "embedding", "weight", (c.vocab_size, D)),
    ]
    positions = (c.max_position_embeddings + POSITION_OFFSET, D)
    parts: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
        ("encoder", c.encoder_layers, c.encoder_ffn_dim, ("self_attn",)),
        ("decoder", c.decoder_layers, c.decoder_ffn_dim, ("self_attn", "encoder_attn")),
    )
    for part, layers, width, attentions in parts:
        table.append(one(f"{part}/embed_positions", "embedding", "weight", positions))
        table += norm(f"{part}/layernorm_embedding")
        for attention in attentions:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                table += dense(f"{part}/layers/{attention}/{name}", layers, D, D)
            table += norm(f"{part}/layers/{attention}_layer_norm", layers)
        table += dense(f"{part}/layers/fc1", layers, D, width)
        table += dense(f"{part}/layers/fc2", layers, width, D)
        table += norm(f"{part}/layers/final_layer_norm", layers)
    if isinstance(c, VLBartConfig):
        table += _visual_tensors(c, f"{prefix}encoder.visual_embedding.")
    return table


def _visual_tensors(config: VLBartConfig, prefix: str) -> list[Tensor]:
    """Return the tensors of the visual embedding; its places are tokens of the vocabulary."""
    D = config.d_model
    table = []
    for dense, norm, size in (
        ("feat_embedding", "feat_layer_norm", config.feature_size),
        ("absolute_vis_pos_embedding", "absolute_vis_pos_layer_norm", BOX_SIZE),
    ):
        for path, name, shape in (
            (f"{dense}/kernel", f"{dense}.0.weight", (size, D)),
            (f"{dense}/bias", f"{dense}.0.bias", (D,)),
            (f"{norm}/scale", f"{dense}.1.weight", (D,)),
            (f"{norm}/bias", f"{dense}.1.bias", (D,)),
        ):
            table.append(Tensor(f"visual_embedding/{path}", prefix + name, "", shape))
    order = "img_order_embedding"
    shape = (config.max_images, D)
    return [
        *table,
        Tensor(f"visual_embedding/{order}/embedding", f"{prefix}{order}.weight", "", shape),
    ]


def _spelt(config: BartConfig, names: Iterable[str]) -> tuple[list[Tensor], list[str]]:
    """Return a model's tensors as a folder spells them, and all its names of the embedding."""
    held = set(names)
    known = "decoder.embed_positions.weight"
    prefix = next((p for p in _PREFIXES if p + known in held), _PREFIXES[0])
    embeddings = [n for n in (*(prefix + e for e in _EMBEDDINGS), _HEAD) if n in held]
    table = []
    for tensor in bart_tensors(config, prefix):
        if tensor.path == "shared/embedding" and embeddings:
            tensor = tensor._replace(hf=embeddings[0])
        if tensor.hf != _LOGITS_BIAS or _LOGITS_BIAS in held:
            table.append(tensor)
    return table, embeddings


def read_bart_folder(
    path: str | Path, dtype: Any = "float32", sharding: Shardings | None = None
) -> BartFolder:
    """Read a `BartForConditionalGeneration`, a `BartModel`, or a VL-BART.

    Args:
        path: the folder.
        dtype: of the arrays returned: float32, bfloat16 or float16.
        sharding: where the arrays go, as `read_hf_folder` takes it.

    Raises:
        DoraError: when files are missing or damaged, a setting is not supported, tensors are
            missing, unexpected or of another shape, or what is tied differs.
    """
    folder, wanted = Path(path), parse_dtype(dtype)
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such folder")
    config = read_bart_config(folder / hf_config.FILE)
    files = open_weights(folder, "AutoModelForSeq2SeqLM")
    table, embeddings = _spelt(config, files)

    def is_ignored(name: str) -> bool:
        # fairseq's numbers of its own versions are in the earliest files.
        return name in embeddings[1:] or name.endswith(("encoder.version", "decoder.version"))

    check_tensors(folder, files, table, is_ignored)
    for other in embeddings[1:]:
        check_tied_head(folder, files, other, embeddings[0])
    tokenizer = Tokenizer.load(folder)  # before the long work
    generation = read_generation_config(folder)
    if generation is None:
        raw = hf_config.read_raw(folder / hf_config.FILE)
        generation = {name: raw[name] for name in _GENERATION if raw.get(name) is not None}
    params = read_weights(folder, files, table, wanted, sharding)
    if _LOGITS_BIAS not in files:
        bias: Any = np.zeros((1, config.vocab_size), wanted)
        if sharding is not None:
            path = f"{_LOGITS_BIAS}/{BUFFER}"
            own = sharding(path, bias.shape) if callable(sharding) else sharding
            bias = jax.device_put(bias, own)
        params[_LOGITS_BIAS] = {BUFFER: bias}
    return BartFolder(config, params, tokenizer, generation)


def write_bart_folder(
    path: str | Path,
    config: BartConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = "float32",
    *,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a folder; of a BART, one that `BartForConditionalGeneration` loads.

    Args:
        path: the folder; must not exist, or be empty.
        config: the model's shape.
        params: its parameters, adapters merged; numpy or jax arrays.
        tokenizer: written beside them.
        dtype: of the weights: float32, bfloat16 or float16.
        generation: its `generation_config.json`, if it has one.
        max_shard_bytes: more than this goes to several files and an index.

    Raises:
        DoraError: as `write_hf_folder`.
    """
    wanted = parse_dtype(dtype)
    ends = list(config.eos_token_id)
    sees = isinstance(config, VLBartConfig)
    model_type = "vl_bart" if sees else "bart"
    fields = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "is_encoder_decoder": True,
        **{name: getattr(config, name) for name in (*_WRITTEN, *(_VISUAL if sees else ()))},
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "activation_function": "gelu",
        "tie_word_embeddings": True,
        # What is forced is said in generation_config.json; left out here it would be 2.
        "forced_eos_token_id": None,
        "torch_dtype": wanted.name,
        "dtype": wanted.name,
    }
    table = bart_tensors(config)
    with new_model_folder(Path(path), table, params, wanted, max_shard_bytes) as folder:
        tokenizer.save(folder)
        (folder / hf_config.FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        write_generation_config(folder, generation)
