"""Model shapes by name, for benchmarks on random weights."""

from typing import Any

from dora_jax.models.config import LlamaConfig

SHAPES = {
    "smollm2-135m": LlamaConfig(),
    # The shape of Llama-3.2-1B.
    "llama-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    ),
    "llama-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        tie_word_embeddings=False,
    ),
    # Two layers of toy size: to try a benchmark itself, not to measure anything.
    "toy": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
}

# What replaces the sizes of BART-base, which are `VLBartConfig`'s own.
VLBART_SHAPES: dict[str, dict[str, Any]] = {
    "bart-base": {},
    "toy": {
        "vocab_size": 512,
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
    },
}
