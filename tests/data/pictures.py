"""Rows with small images, and what a model that sees takes for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.data.images import ImageProcessor
from dora_jax.data.vision import Vision
from dora_jax.models.llava import LlavaConfig
from tests.models.llavas import IMAGE, PATCHES

SIDE = 14
PROCESSOR = ImageProcessor(size=SIDE, crop=(SIDE, SIDE), mean=None)
VISION = Vision(PROCESSOR, IMAGE, PATCHES, (SIDE, SIDE, 3))


def draw(path: Path, value: int) -> Path:
    """Write an image of one grey."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (value,) * 3).save(path)
    return path


def grey(value: int) -> np.ndarray:
    """Return the numbers of such an image."""
    return np.full((SIDE, SIDE, 3), value / 255, np.float32)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(*turns: str) -> list[dict[str, str]]:
    """Return a conversation in LLaVA's format."""
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


def vision_of(config: LlavaConfig) -> Vision:
    return Vision(PROCESSOR, config.image_token_id, config.image_tokens, config.image_shape)
