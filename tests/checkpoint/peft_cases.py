"""Adapters that PEFT trains for the golden files, on tiny models whose weights need no file."""

from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.checkpoint.hf import read_hf_folder
from tests.models.families import TOKENS, weight, write_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
STEPS, RATE, DECAY = 20, 0.01, 0.1
BATCHES = np.random.default_rng(3).integers(3, TOKENS.max() + 1, (STEPS, 2, 12))

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
}


def initial(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the start of a factor, told by its name alone; None for other tensors."""
    is_factor = any(part in name for part in ("lora_A", "lora_B", "lora_embedding"))
    return weight(name, shape) if is_factor else None


def base(folder: Path, family: str) -> tuple[Any, Any]:
    """Return (config, parameters) of a family's tiny model."""
    write_folder(folder, family)
    config, params, _ = read_hf_folder(folder)
    return config, params
