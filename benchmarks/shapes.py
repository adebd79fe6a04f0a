"""Model shapes by name, for benchmarks on random weights."""

from dora_jax.models.config import LlamaConfig

SHAPES = {
    "smollm2-135m": LlamaConfig(),
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
