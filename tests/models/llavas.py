"""Tiny LLaVA models whose weights need no file: their names tell the values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.checkpoint import tiny_model
from tests.models import families, towers
from tests.models.families import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "llavas.json"
IMAGE = 5  # the token at whose places images stand
# The language model's family, the tower's class, and what differs.
LLAVAS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava-1.5": ("llama", "clip", {}),
    "siglip-qwen": (
        "qwen2",
        "siglip-headless",
        {
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "multimodal_projector_bias": False,
        },
    ),
    "two-layers": ("mistral", "clip", {"vision_feature_layer": [-2, 1]}),
}
# The same with another choice of the tower's tokens, and how many an image is then.
SELECTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip-full": ("llama", "clip", {"vision_feature_select_strategy": "full"}),
    "siglip-default": ("llama", "siglip-headless", {}),
}
PATCHES = 9
IMAGE_TOKENS = {
    **dict.fromkeys(LLAVAS, PATCHES),
    "clip-full": PATCHES + 1,  # the class token too
    "siglip-default": PATCHES - 1,  # without a class token it is a patch that is left out
}
SEEN = (0, 12, 30)  # positions whose logits the golden file keeps
NEW_TOKENS = 12


def tokens(image: int = PATCHES) -> np.ndarray:
    """Two images of so many tokens in the first row, one in the second, none in the third."""
    rng = np.random.default_rng(11)
    found = rng.integers(6, families.SIZES["vocab_size"], (3, 31))
    for row, start in ((0, 2), (0, 15), (1, 20)):
        found[row, start : start + image] = IMAGE
    return found


TOKENS = tokens()
# Rows with fewer images are filled up.
IMAGES = np.random.default_rng(12).standard_normal((3, 2, 14, 14, 3)).astype(np.float32)
OF_ROWS = (2, 1, 0)


def golden(name: str) -> dict[str, Any]:
    """Return what `transformers` makes of a model."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    return found


def write_folder(folder: Path, name: str, rename: Any = lambda key: key) -> dict[str, np.ndarray]:
    """Write a model's folder, its tensors' names changed; return the tensors."""
    expected = golden(name)
    found = {key: weight(key, tuple(shape)) for key, shape in expected["tensors"].items()}
    folder.mkdir(parents=True)
    named = {rename(key): array for key, array in found.items()}
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(expected["config"]))
    tiny_model.tokenizer().save(folder)
    return found


def sizes(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a model's language model and of its tower."""
    family, tower, _ = (LLAVAS | SELECTIONS)[name]
    return families.SIZES | families.FAMILIES[family][1], towers.SIZES | towers.TOWERS[tower][1]
