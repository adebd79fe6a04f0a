"""The shapes of the paper's VL-BARTs, and how much of them it tunes (Tables 2, 3 and 9)."""

from typing import Literal

from dora_jax.models.vlbart import VLBartConfig
from dora_jax.spec import AdapterRules
from experiments.vlbart.paper import Family, adapter

CONFIGS: dict[Family, VLBartConfig] = {
    # CLIP-ResNet101's grid, and CLIP ViT-B/32's vector of each frame.
    "image": VLBartConfig(pooling="max"),
    "video": VLBartConfig(feature_size=512, image_tokens=64, layout="frames", pooling="max"),
}
# Trained parameters in percent of all, the adapters' own among them.
PUBLISHED = {
    ("image", "lora"): 5.93,
    ("image", "dora"): 5.96,
    ("video", "lora"): 5.17,
    ("video", "dora"): 5.19,
}


def tuned(method: Literal["lora", "dora"], family: Family) -> AdapterRules:
    """Return the paper's rules for a method."""
    return adapter(family).rules(method)
