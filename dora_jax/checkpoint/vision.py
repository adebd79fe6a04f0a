"""Vision towers of CLIP and SigLIP in Hugging Face folders: config, names, weights.

Files spell a tower's names with prefixes of their own, by what it is a part of and by their age
(`PREFIXES`); the table has the bare names.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.folder import (
    AGAIN,
    check_tensors,
    new_model_folder,
    open_weights,
    read_weights,
)
from dora_jax.checkpoint.names import Tensor, parse_dtype
from dora_jax.errors import DoraError
from dora_jax.models.vision_config import SIZES, VisionConfig

# Of `CLIPVisionModel` and `SiglipVisionModel` now; as they were, and in `CLIPModel`.
PREFIXES = ("", "vision_model.")
# In a LLaVA, saved and live.
_IN_LLAVA = ("vision_tower.", "model.vision_tower.")
# The other half of `CLIPModel`; of a LLaVA, all that is not its tower.
_OF_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
POSITION_IDS = "embeddings.position_ids"
# What each family is, with what its files may leave out.
_FAMILIES = {
    "clip_vision_model": VisionConfig(),
    "siglip_vision_model": VisionConfig(
        patch_size=16,
        layer_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        model_type="siglip_vision_model",
        class_token=False,
        pre_norm=False,
        patch_bias=True,
        pooling_head=True,
    ),
}
_WRITTEN = (*SIZES, "hidden_act", "layer_norm_eps")
_ARCHITECTURES = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}


def read_vision_config(raw: dict[str, Any], where: str) -> VisionConfig:
    """Return a tower's shape.

    Args:
        raw: a `config.json` of a tower or of a model that has one in its `vision_config`.
        where: names it in messages.

    Raises:
        DoraError: for another kind of model, or a setting that is not supported.
    """
    if "vision_config" in raw:
        part = raw["vision_config"]
        if not isinstance(part, dict):
            raise DoraError(f"{where}: vision_config must be an object; got {part!r}. {AGAIN}")
        raw = {"model_type": "clip_vision_model", **part}
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise DoraError(
            f"{where}: a vision tower of model_type {family!r}; supported: {', '.join(_FAMILIES)}"
        )
    if raw.get("attention_dropout"):
        raise DoraError(f"{where}: attention_dropout {raw['attention_dropout']} is not supported")
    given = {name: raw[name] for name in _WRITTEN if raw.get(name) is not None}
    if raw.get("vision_use_head") is False:
        given["pooling_head"] = False
    try:
        return dataclasses.replace(_FAMILIES[family], **given)
    except (TypeError, ValueError) as error:
        raise DoraError(f"{where}: {error}. {AGAIN}") from None


def vision_config_to_dict(config: VisionConfig) -> dict[str, Any]:
    """Return the settings that a `config.json` gives for a tower."""
    fields: dict[str, Any] = {
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in _WRITTEN},
        "attention_dropout": 0.0,
    }
    if config.model_type == "siglip_vision_model":
        fields["vision_use_head"] = config.pooling_head
    return fields


def vision_tensors(config: VisionConfig, path: str = "", prefix: str = "") -> list[Tensor]:
    """Return every kind of tensor of a tower.

    Args:
        config: its shape.
        path: before its paths in our tree, with a slash at the end.
        prefix: before its names in files, with a dot at the end.
    """
    c = config
    D, F, N = c.hidden_size, c.intermediate_size, c.num_hidden_layers

    def one(ours: str, hf: str, *shape: int, layers: int = 0) -> Tensor:
        return Tensor(path + ours, prefix + hf, "", shape, layers=layers)

    def norm(module: str, hf: str, layers: int = 0) -> list[Tensor]:
        names = (("scale", "weight"), ("bias", "bias"))
        return [one(f"{module}/{o}", f"{hf}.{n}", D, layers=layers) for o, n in names]

    def dense(module: str, hf: str, *shape: int, layers: int = 0) -> list[Tensor]:
        return [
            one(f"{module}/kernel", f"{hf}.weight", *shape, layers=layers),
            one(f"{module}/bias", f"{hf}.bias", shape[-1], layers=layers),
        ]

    size = c.patch_size
    patch = dense(
        "embeddings/patch_embedding", "embeddings.patch_embedding", size, size, c.num_channels, D
    )
    table = [
        *([one("embeddings/class_embedding", "embeddings.class_embedding", D)] * c.class_token),
        *patch[: 2 if c.patch_bias else 1],
        one(
            "embeddings/position_embedding", "embeddings.position_embedding.weight", c.positions, D
        ),
        *(norm("pre_layrnorm", "pre_layrnorm") if c.pre_norm else []),
    ]
    layer = "encoder.layers.{n}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        table += dense(f"layers/self_attn/{name}", f"{layer}.self_attn.{name}", D, D, layers=N)
    for name, shape in (("fc1", (D, F)), ("fc2", (F, D))):
        table += dense(f"layers/mlp/{name}", f"{layer}.mlp.{name}", *shape, layers=N)
    for name in ("layer_norm1", "layer_norm2"):
        table += norm(f"layers/{name}", f"{layer}.{name}", layers=N)
    table += norm("post_layernorm", "post_layernorm")
    if c.pooling_head:
        # torch's MultiheadAttention holds q, k and v as one, and without the usual ending.
        table += [
            one("head/probe", "head.probe", 1, 1, D),
            one("head/attention/in_proj/kernel", "head.attention.in_proj_weight", D, 3 * D),
            one("head/attention/in_proj/bias", "head.attention.in_proj_bias", 3 * D),
            *dense("head/attention/out_proj", "head.attention.out_proj", D, D),
            *norm("head/layernorm", "head.layernorm"),
            *dense("head/mlp/fc1", "head.mlp.fc1", D, F),
            *dense("head/mlp/fc2", "head.mlp.fc2", F, D),
        ]
    return table


def find_prefix(names: Iterable[str], prefixes: Iterable[str]) -> str:
    """Return the prefix under which files hold a tower; the first where there is none."""
    held = set(names)
    known = "embeddings.patch_embedding.weight"
    prefixes = list(prefixes)
    return next((prefix for prefix in prefixes if prefix + known in held), prefixes[0])


def read_vision_folder(
    path: str | Path, dtype: Any = "float32", sharding: Shardings | None = None
) -> tuple[VisionConfig, dict[str, Any]]:
    """Read a folder's vision tower: `CLIPVisionModel`, `CLIPModel`, `SiglipVisionModel`, or LLaVA.

    Args:
        path: the folder; of a `CLIPModel` or a LLaVA the rest is left out.
        dtype: of the arrays returned: float32, bfloat16 or float16.
        sharding: where the arrays go, as `read_hf_folder` takes it.

    Returns:
        The tower's shape, and the parameters that `VisionTower` takes.

    Raises:
        DoraError: when files are missing or damaged, it is another kind of model, or tensors are
            missing, unexpected or of another shape.
    """
    folder, wanted = Path(path), parse_dtype(dtype)
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such folder")
    file = folder / hf_config.FILE
    config = read_vision_config(hf_config.read_raw(file), str(file))
    files = open_weights(folder)
    prefix = find_prefix(files, [of + own for of in ("", *_IN_LLAVA) for own in PREFIXES])
    is_llava = prefix.startswith(_IN_LLAVA)

    def is_ignored(name: str) -> bool:
        if is_llava and not name.startswith(prefix):
            return True
        return name.startswith(_OF_TEXT) or name == prefix + POSITION_IDS

    table = vision_tensors(config, prefix=prefix)
    check_tensors(folder, files, table, is_ignored)
    return config, read_weights(folder, files, table, wanted, sharding)


def write_vision_folder(
    path: str | Path, config: VisionConfig, params: dict[str, Any], dtype: Any = "float32"
) -> None:
    """Write a tower as a folder that `transformers`' vision models load.

    Args:
        path: the folder; must not exist, or be empty.
        config: the tower's shape.
        params: its parameters, adapters merged; numpy or jax arrays.
        dtype: of the weights: float32, bfloat16 or float16.

    Raises:
        DoraError: as `write_hf_folder`.
    """
    wanted = parse_dtype(dtype)
    fields = {
        "architectures": [_ARCHITECTURES[config.model_type]],
        **vision_config_to_dict(config),
        "torch_dtype": wanted.name,
        "dtype": wanted.name,
    }
    with new_model_folder(Path(path), vision_tensors(config), params, wanted) as folder:
        text = json.dumps(fields, indent=2) + "\n"
        (folder / hf_config.FILE).write_text(text, encoding="utf-8")
