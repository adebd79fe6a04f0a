"""LLaVA-1.5 in Hugging Face folders: config, names, weights; tower, projector, language model.

How their tensors are spelt is told by `dora_jax.checkpoint.llava_names`.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

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
from dora_jax.checkpoint.hf import check_tied_head, is_unused, write_generation_config
from dora_jax.checkpoint.llava_names import ORIGINAL, SPELLINGS, folder_spelling, llava_tensors
from dora_jax.checkpoint.names import parse_dtype
from dora_jax.checkpoint.safetensors_file import SafetensorsFile, refuse_pickle
from dora_jax.checkpoint.vision import (
    POSITION_IDS,
    read_vision_config,
    vision_config_to_dict,
)
from dora_jax.data.images import FILE as PROCESSOR_FILE
from dora_jax.data.images import PROCESSOR_FILE as WHOLE_PROCESSOR_FILE
from dora_jax.data.images import ImageProcessor
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.llava import LlavaConfig
from dora_jax.models.vision_config import VisionConfig

_log = logging.getLogger(__name__)

ARCHITECTURE = "LlavaForConditionalGeneration"
# What a LLaVA's file leaves out of its language model: the sizes of LLaMA-7B.
_TEXT_DEFAULTS = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_PROJECTOR = "multi_modal_projector"
_SELECTIONS = {"default": False, "full": True}
_STRATEGIES = {keeps: name for name, keeps in _SELECTIONS.items()}


class LlavaFolder(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the shape.
        params: the parameters that `Llava` takes.
        tokenizer: the language model's.
        processor: of images.
    """

    config: LlavaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    processor: ImageProcessor


def is_llava(folder: Path) -> bool:
    """Whether a folder's `config.json` is of LLaVA."""
    file = folder / hf_config.FILE
    return file.is_file() and hf_config.read_raw(file).get("model_type") == "llava"


def read_llava_config(path: Path) -> LlavaConfig:
    """Read a `config.json` of LLaVA.

    Raises:
        DoraError: when it is missing or broken, or describes what is not supported.
    """
    raw = hf_config.read_raw(path)
    if raw.get("model_type") != "llava":
        raise DoraError(f"{path}: a model of type {raw.get('model_type')!r}; supported: 'llava'")
    given = {name: value for name, value in raw.items() if value is not None}
    for part in ("text_config", "vision_config"):
        if not isinstance(given.get(part, {}), dict):
            raise DoraError(f"{path}: {part} must be an object; got {given[part]!r}. {AGAIN}")
    text = _TEXT_DEFAULTS | given.get("text_config", {})
    # Its type says what kind it is; the head is the whole model's.
    text.pop("architectures", None)
    text["tie_word_embeddings"] = given.get("tie_word_embeddings", False)
    layers = given.get("vision_feature_layer", -2)
    strategy = given.get("vision_feature_select_strategy", "default")
    if not isinstance(strategy, str) or strategy not in _SELECTIONS:
        raise DoraError(
            f"{path}: vision_feature_select_strategy must be one of {', '.join(_SELECTIONS)}; got "
            f"{strategy!r}"
        )
    try:
        return LlavaConfig(
            vision=read_vision_config(raw, str(path)),
            text=hf_config.config_of(text, path),
            image_token_id=given.get("image_token_index", given.get("image_token_id", 32000)),
            feature_layers=tuple(layers) if isinstance(layers, list) else (layers,),
            first_token=_SELECTIONS[strategy],
            projector_act=given.get("projector_hidden_act", "gelu"),
            projector_bias=given.get("multimodal_projector_bias", True),
        )
    except (TypeError, ValueError) as error:
        raise DoraError(f"{path}: {error}. {AGAIN}") from None


def read_llava_folder(
    path: str | Path, dtype: Any = "float32", sharding: Shardings | None = None
) -> LlavaFolder:
    """Read a `LlavaForConditionalGeneration`.

    Args:
        path: the folder.
        dtype: of the arrays returned: float32, bfloat16 or float16.
        sharding: where the arrays go, as `read_hf_folder` takes it.

    Raises:
        DoraError: when files are missing or damaged, a part is not supported, or tensors are
            missing, unexpected or of another shape.
    """
    folder, wanted = Path(path), parse_dtype(dtype)
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such folder")
    config = read_llava_config(folder / hf_config.FILE)
    files = open_weights(folder)
    spelling = folder_spelling(files)
    table = llava_tensors(config, spelling)
    head = f"{spelling.head}weight"
    is_tied = config.text.tie_word_embeddings

    def is_ignored(name: str) -> bool:
        return is_unused(name, head, is_tied) or name == spelling.tower + POSITION_IDS

    check_tensors(folder, files, table, is_ignored)
    if is_tied:
        check_tied_head(folder, files, head, f"{spelling.trunk}embed_tokens.weight")
    tokenizer = Tokenizer.load(folder)  # before the long work
    processor = read_processor(folder, config.vision)
    params = read_weights(folder, files, table, wanted, sharding)
    return LlavaFolder(config, params, tokenizer, processor)


def read_processor(folder: Path, vision: VisionConfig) -> ImageProcessor:
    """Return the processor of a folder's images: its own, or the tower's family's usual one.

    Raises:
        DoraError: when its file is broken.
    """
    if ImageProcessor.is_told(folder):
        return ImageProcessor.load(folder)
    _log.warning(
        "%s: says nothing of how images are processed (%s); taken is what is usual for its tower",
        folder,
        PROCESSOR_FILE,
    )
    side = (vision.image_size, vision.image_size)
    if vision.model_type == "siglip_vision_model":
        return ImageProcessor(size=side, crop=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return ImageProcessor(size=vision.image_size, crop=side)


def read_projector(path: str | Path, config: LlavaConfig) -> dict[str, Any]:
    """Read a projector alone, such as LLaVA's first stage of training gives.

    Args:
        path: safetensors, spelt in any way: the authors' is `model.mm_projector.0.weight`.
        config: of the model that it is for.

    Returns:
        The parameters of `multi_modal_projector`, float32 numpy arrays.

    Raises:
        DoraError: when the file is missing, damaged or pickled, or its tensors do not fit.
    """
    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise DoraError(f"{path}: no such file")
    file = SafetensorsFile(path)
    spelling = next(
        (s for s in SPELLINGS if any(n.startswith(s.projector) for n in file.tensors)), ORIGINAL
    )
    table = [t for t in llava_tensors(config, spelling) if t.path.startswith(f"{_PROJECTOR}/")]
    files = dict.fromkeys(file.tensors, file)
    check_tensors(path, files, table)
    found: dict[str, Any] = read_weights(path, files, table, np.dtype("float32"))[_PROJECTOR]
    return found


def _processor_fields(config: LlavaConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what transformers' `LlavaProcessor` needs beside tokenizer and image processor."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": tokenizer.token_text(config.image_token_id),
        "patch_size": config.vision.patch_size,
        "num_additional_image_tokens": int(config.vision.class_token),
        "vision_feature_select_strategy": _STRATEGIES[config.first_token],
    }


def write_llava_folder(
    path: str | Path,
    config: LlavaConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = "float32",
    *,
    processor: ImageProcessor,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a folder that `LlavaForConditionalGeneration` loads.

    Args:
        path: the folder; must not exist, or be empty.
        config: the model's shape.
        params: its parameters, adapters merged; numpy or jax arrays.
        tokenizer: written beside them.
        dtype: of the weights: float32, bfloat16 or float16.
        processor: of images.
        generation: its `generation_config.json`, if it has one.
        max_shard_bytes: more than this goes to several files and an index.

    Raises:
        DoraError: as `write_hf_folder`.
    """
    wanted = parse_dtype(dtype)
    text = hf_config.to_dict(config.text, wanted.name)
    layers = config.feature_layers
    fields = {
        "architectures": [ARCHITECTURE],
        "model_type": "llava",
        "image_token_index": config.image_token_id,
        "image_seq_length": config.image_tokens,
        "projector_hidden_act": config.projector_act,
        "multimodal_projector_bias": config.projector_bias,
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": _STRATEGIES[config.first_token],
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "text_config": text,
        "vision_config": vision_config_to_dict(config.vision),
        "torch_dtype": wanted.name,
        "dtype": wanted.name,
    }
    table = llava_tensors(config)
    with new_model_folder(Path(path), table, params, wanted, max_shard_bytes) as folder:
        tokenizer.save(folder)
        (folder / hf_config.FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        written = json.dumps(processor.to_dict(), indent=2) + "\n"
        (folder / PROCESSOR_FILE).write_text(written, encoding="utf-8")
        whole = json.dumps(_processor_fields(config, tokenizer), indent=2) + "\n"
        (folder / WHOLE_PROCESSOR_FILE).write_text(whole, encoding="utf-8")
        write_generation_config(folder, generation)
