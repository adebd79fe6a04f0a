"""A VL-BART's shape, a tower and pictures, as small as they go."""

import numpy as np

from dora_jax.data.images import ImageProcessor
from dora_jax.models.vision_config import VisionConfig
from dora_jax.models.vit import VisionTower
from dora_jax.models.vlbart import VLBartConfig
from tests.checkpoint.tiny_model import TOKENS

CONFIG = VLBartConfig(
    vocab_size=len(TOKENS) + 4,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
    max_position_embeddings=64,
    feature_size=3,
    image_tokens=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
)
TOWER_CONFIG = VisionConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)
TOWER = VisionTower(TOWER_CONFIG)
PROCESSOR = ImageProcessor(size=None, crop=None)
PICTURES = list(np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8))
