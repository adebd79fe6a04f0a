"""What the paper's VL-BART study tunes (Tables 2, 3 and 9), as rules.

Rank 128 on the query and value projections of every attention (the paper's table says query and
key: its scripts do not), every bias of encoder and decoder, and the visual embedding in full; for
images the layer norms too. Alpha is the rank: the factor on A B is one.
"""

from typing import Literal

from dora_jax.models.vlbart import VLBartConfig
from dora_jax.spec import AdapterRules, AdapterSpec

Family = Literal["image", "video"]

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
    adapter = AdapterSpec(method, rank=128, alpha=128, train_bias=True)
    bias, full = AdapterSpec("frozen", train_bias=True), AdapterSpec("full")
    return AdapterRules(
        [
            (r"visual_embedding/.*", full),
            (r"(?:encoder|decoder)/layers/.*/(?:q|v)_proj", adapter),
            (r"(?:encoder|decoder)/.*norm.*", full if family == "image" else bias),
            (r"(?:encoder|decoder)/layers/.*", bias),
        ]
    )
