"""Adapters that PEFT trains for the golden files, on tiny models whose weights need no file."""

from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.checkpoint.hf import read_hf_folder
from dora_jax.checkpoint.llava import read_llava_folder
from tests.models import families, llavas
from tests.models.families import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
STEPS, RATE, DECAY = 20, 0.01, 0.1
PROJECTOR_RATE = RATE / 5
BATCHES = np.random.default_rng(3).integers(3, families.TOKENS.max() + 1, (STEPS, 2, 12))

# Family, and the fields of LoraConfig.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    "dora": (
        "llama",
        {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    ),
    "rslora-dora": (
        "phi3",
        {
            "r": 4,
            "lora_alpha": 2,
            "use_dora": True,
            "use_rslora": True,
            "target_modules": r".*\.(qkv_proj|o_proj)",
        },
    ),
    "patterns": (
        "qwen3",
        {
            "r": 2,
            "lora_alpha": 4,
            "use_dora": True,
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 4, r".*\.[23]\.mlp\.up_proj": 1},
            "alpha_pattern": {"v_proj": 3, "layers.2.self_attn.q_proj": 1},
        },
    ),
    "some-layers": (
        "mistral",
        {
            "r": 2,
            "lora_alpha": 5,
            "use_dora": True,
            "target_modules": ["k_proj", "gate_proj"],
            "exclude_modules": ["layers.3.mlp.gate_proj"],
            "layers_to_transform": [1, 3],
            "layers_pattern": "layers",
        },
    ),
    "embeddings": (
        "qwen2",
        {
            "r": 2,
            "lora_alpha": 2,
            "use_dora": True,
            "target_modules": ["embed_tokens", "k_proj"],
            "bias": "lora_only",
        },
    ),
    "saved-modules": (
        "qwen3",
        {
            "r": 2,
            "lora_alpha": 2,
            "target_modules": ["o_proj"],
            "modules_to_save": ["lm_head", "norm"],
        },
    ),
    # Of LLaVA; these names are the tower's too.
    "llava-lora": ("llava-1.5", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}),
    "llava-dora": (
        "two-layers",
        {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ["q_proj", "v_proj"]},
    ),
    "llava-projector": (
        "llava-1.5",
        {
            "r": 2,
            "lora_alpha": 4,
            "use_dora": True,
            "target_modules": r".*language_model.*\.(q_proj|down_proj)",
            "modules_to_save": ["linear_1", "linear_2"],
        },
    ),
    "llava-all-linear": (
        "siglip-qwen",
        {"r": 1, "lora_alpha": 2, "use_dora": True, "target_modules": "all-linear"},
    ),
}


def is_llava(family: str) -> bool:
    return family in llavas.LLAVAS


def batches(family: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the tokens (steps, rows, length) and images of a training."""
    if not is_llava(family):
        return BATCHES, None
    rng = np.random.default_rng(4)
    tokens = rng.integers(6, families.TOKENS.max() + 1, (STEPS, *llavas.TOKENS.shape))
    images = rng.standard_normal((STEPS, *llavas.IMAGES.shape)).astype(np.float32)
    return np.where(llavas.TOKENS == llavas.IMAGE, llavas.IMAGE, tokens), images


def inputs(family: str) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
    """Return tokens and images, and the positions whose logits the golden file keeps."""
    if is_llava(family):
        return llavas.TOKENS, llavas.IMAGES, list(llavas.SEEN[1:])
    return families.TOKENS, None, list(families.SEEN)


def initial(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the start of a factor, told by its name alone; None for other tensors."""
    is_factor = any(part in name for part in ("lora_A", "lora_B", "lora_embedding"))
    return weight(name, shape) if is_factor else None


def base(folder: Path, family: str) -> tuple[Any, Any]:
    """Return (config, parameters) of a family's tiny model."""
    if is_llava(family):
        llavas.write_folder(folder, family)
        return read_llava_folder(folder)[:2]
    families.write_folder(folder, family)
    config, params, _ = read_hf_folder(folder)
    return config, params
