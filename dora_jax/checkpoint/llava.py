"""LLaVA-1.5 in Hugging Face folders: config, names, weights; tower, projector, language model.

`LlavaForConditionalGeneration` has spelt its parts in three ways (`_SPELLINGS`); what is written is
the one that every version of transformers reads.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.folder import (
    AGAIN,
    MAX_SHARD_BYTES,
    Files,
    new_model_folder,
    open_weights,
    read_weights,
)
from dora_jax.checkpoint.names import Tensor, parse_dtype, tensors
from dora_jax.checkpoint.vision import (
    POSITION_IDS,
    find_prefix,
    read_vision_config,
    vision_config_to_dict,
    vision_tensors,
)
from dora_jax.data.images import FILE as PROCESSOR_FILE
from dora_jax.data.images import ImageProcessor
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.llava import LlavaConfig

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
_SELECTIONS = {"default": False, "full": True}


class _Spelling(NamedTuple):
    """How a file's names begin.

    Attributes:
        tower: before the tower's.
        projector: before the projector's.
        trunk: in place of the language model's `model.`.
        head: in place of its `lm_head.`.
    """

    tower: str
    projector: str
    trunk: str
    head: str


_SPELLINGS = (
    _Spelling(
        "vision_tower.",
        "multi_modal_projector.",
        "language_model.model.",
        "language_model.lm_head.",
    ),
    _Spelling(
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "language_model.model.",
        "language_model.lm_head.",
    ),
    _Spelling(
        "model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head."
    ),
    _Spelling(
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
        "model.language_model.",
        "lm_head.",
    ),
)


class LlavaFolder(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the shape.
        params: the parameters that `Llava` takes.
        tokenizer: the language model's.
        processor: of images; None where the folder has none.
    """

    config: LlavaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    processor: ImageProcessor | None


def read_llava_config(path: Path) -> LlavaConfig:
    """Read a `config.json` of LLaVA.

    Raises:
        DoraError: when it is missing or broken, or describes what is not supported.
    """
    raw = hf_config.read_raw(path)
    if raw.get("model_type") != "llava":
        raise DoraError(f"{path}: a model of type {raw.get('model_type')!r}; supported: 'llava'")
    given = {name: value for name, value in raw.items() if value is not None}
    text = _TEXT_DEFAULTS | given.get("text_config", {})
    # Its type says what kind it is; the head is the whole model's.
    text.pop("architectures", None)
    text["tie_word_embeddings"] = given.get("tie_word_embeddings", False)
    layers = given.get("vision_feature_layer", -2)
    strategy = given.get("vision_feature_select_strategy", "default")
    if strategy not in _SELECTIONS:
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
            class_token=_SELECTIONS[strategy],
            projector_act=given.get("projector_hidden_act", "gelu"),
            projector_bias=given.get("multimodal_projector_bias", True),
        )
    except (TypeError, ValueError) as error:
        raise DoraError(f"{path}: {error}. {AGAIN}") from None


def llava_tensors(config: LlavaConfig, spelling: _Spelling = _SPELLINGS[0]) -> list[Tensor]:
    """Return every kind of tensor of a model, as a file spells it."""
    c = config
    wide, narrow = len(c.feature_layers) * c.vision.hidden_size, c.text.hidden_size
    projector = []
    for name, size in (("linear_1", wide), ("linear_2", narrow)):
        ours, hf = f"multi_modal_projector/{name}", f"{spelling.projector}{name}"
        projector.append(Tensor(f"{ours}/kernel", f"{hf}.weight", "", (size, narrow)))
        if c.projector_bias:
            projector.append(Tensor(f"{ours}/bias", f"{hf}.bias", "", (narrow,)))
    return [
        *vision_tensors(c.vision, "vision_tower/", spelling.tower),
        *projector,
        *(_of_text(tensor, spelling) for tensor in tensors(c.text)),
    ]


def _of_text(tensor: Tensor, spelling: _Spelling) -> Tensor:
    if tensor.hf.startswith("lm_head."):
        name = spelling.head + tensor.hf.removeprefix("lm_head.")
    else:
        name = spelling.trunk + tensor.hf.removeprefix("model.")
    return tensor._replace(path=f"language_model/{tensor.path}", hf=name)


def _spelling(files: Files) -> _Spelling:
    by_tower = {spelling.tower: spelling for spelling in _SPELLINGS}
    return by_tower[find_prefix(files, by_tower)]


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
    spelling = _spelling(files)
    tied_head = f"{spelling.head}weight" if config.text.tie_word_embeddings else None

    def is_ignored(name: str) -> bool:
        is_old = name.endswith("rotary_emb.inv_freq") or name == spelling.tower + POSITION_IDS
        return is_old or name == tied_head

    tokenizer = Tokenizer.load(folder)  # before the long work
    has_processor = (folder / PROCESSOR_FILE).is_file()
    processor = ImageProcessor.load(folder) if has_processor else None
    table = llava_tensors(config, spelling)
    params = read_weights(folder, files, table, wanted, sharding, is_ignored)
    return LlavaFolder(config, params, tokenizer, processor)


def write_llava_folder(
    path: str | Path,
    config: LlavaConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = "float32",
    *,
    processor: ImageProcessor | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a folder that `LlavaForConditionalGeneration` loads.

    Args:
        path: the folder; must not exist, or be empty.
        config: the model's shape.
        params: its parameters, adapters merged; numpy or jax arrays.
        tokenizer: written beside them.
        dtype: of the weights: float32, bfloat16 or float16.
        processor: of images, if it has one.
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
        "vision_feature_select_strategy": "full" if config.class_token else "default",
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
        if processor is not None:
            written = json.dumps(processor.to_dict(), indent=2) + "\n"
            (folder / PROCESSOR_FILE).write_text(written, encoding="utf-8")
