"""Tiny vision towers whose weights need no file: their names tell the values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.models.families import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "towers.json"
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 14,
    "patch_size": 4,  # a rest of two pixels is left out
}
# Class of the tower, and what differs from its defaults.
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVision", {}),
    "clip-gelu": ("CLIPVision", {"hidden_act": "gelu", "layer_norm_eps": 1e-4}),
    "siglip": ("SiglipVision", {}),
    "siglip-headless": ("SiglipVision", {"vision_use_head": False}),
}
IMAGES = np.random.default_rng(5).standard_normal((2, 14, 14, 3)).astype(np.float32)
LAYERS = (0, 1, -2, -1)
SEEN = (0, 4)  # tokens whose features the golden file keeps


def golden(tower: str) -> dict[str, Any]:
    """Return what `transformers` makes of a tower."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))[tower]
    return found


def write_folder(folder: Path, tower: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Write a tower's folder, its names behind a prefix; return the tensors."""
    expected = golden(tower)
    tensors = {name: weight(name, tuple(shape)) for name, shape in expected["tensors"].items()}
    folder.mkdir(parents=True)
    named = {prefix + name: array for name, array in tensors.items()}
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(expected["config"]))
    return tensors
