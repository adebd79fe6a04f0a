"""Texts from prompts with images: greedy text is transformers', whatever else is in the batch."""

import functools

import jax
import numpy as np
import pytest

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.errors import DoraError
from dora_jax.generation import AdapterBank, Sampling, generate, generate_ids
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.models.llava import Llava
from dora_jax.scoring import score
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.models.llavas import (
    IMAGE,
    IMAGE_TOKENS,
    IMAGES,
    LLAVAS,
    NEW_TOKENS,
    OF_ROWS,
    PATCHES,
    SELECTIONS,
    TOKENS,
    golden,
    tokens,
    write_folder,
)

PROMPTS = [row.tolist() for row in TOKENS]
SEEN = [[*IMAGES[n, :count]] for n, count in enumerate(OF_ROWS)]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    @functools.cache
    def read(name):
        folder = tmp_path_factory.mktemp(name) / "folder"
        write_folder(folder, name)
        found = read_llava_folder(folder)
        return Llava(found.config), jax.device_put(found.params)

    return read


def texts(model, params, prompts=PROMPTS, images=SEEN, sampling=None, **how):
    sampling = sampling or Sampling(NEW_TOKENS)
    found = generate(model, params, prompts, sampling, images=images, stop_ids=(), **how)
    return [list(completion.token_ids) for completion in found]


@pytest.mark.parametrize("name", LLAVAS | SELECTIONS)
def test_greedy_text_is_that_of_transformers(read, name):
    prompts = tokens(IMAGE_TOKENS[name]).tolist()
    assert texts(*read(name), prompts) == golden(name)["greedy"]


def test_whatever_else_is_in_the_batch(read):
    model, params = read("llava-1.5")
    alone = [
        texts(model, params, [prompt], [own])[0] for prompt, own in zip(PROMPTS, SEEN, strict=True)
    ]
    assert alone == golden("llava-1.5")["greedy"]
    assert texts(model, params, batch_size=2) == alone
    assert generate_ids(model, {"params": params}, PROMPTS, Sampling(NEW_TOKENS), (), SEEN) == alone


def test_an_image_may_be_one_token_or_all_of_them(read):
    def shortened(prompt):
        kept, n = [], 0
        while n < len(prompt):
            kept.append(prompt[n])
            n += PATCHES if prompt[n] == IMAGE else 1
        return kept

    short = [shortened(prompt) for prompt in PROMPTS]
    assert [len(ids) for ids in short] == [
        len(ids) - count * (PATCHES - 1) for ids, count in zip(PROMPTS, OF_ROWS, strict=True)
    ]
    assert texts(*read("llava-1.5"), prompts=short) == golden("llava-1.5")["greedy"]


@pytest.mark.slow
def test_samples_and_beams_see_the_images(read):
    model, params = read("llava-1.5")
    sampled = texts(model, params, sampling=Sampling(4, temperature=1.0, num_samples=3, seed=5))
    again = texts(
        model,
        params,
        PROMPTS[:1],
        SEEN[:1],
        Sampling(4, temperature=1.0, num_samples=3, seed=5),
    )
    assert sampled[:3] == again
    one_beam = golden("llava-1.5")["greedy"]
    beams = generate(
        model, params, PROMPTS, Sampling(NEW_TOKENS, num_beams=3), images=SEEN, stop_ids=()
    )
    for found, greedy, prompt, own in zip(beams, one_beam, PROMPTS, SEEN, strict=True):
        (scores,) = score(model, params, [prompt], [[found.token_ids, greedy]], images=[own])
        assert found.score * NEW_TOKENS == pytest.approx(scores[0].log_likelihood, abs=1e-3)
        assert scores[0].log_likelihood >= scores[1].log_likelihood - 1e-3


@pytest.mark.slow
def test_scores_are_those_of_the_logits(read):
    model, params = read("llava-1.5")
    found = score(
        model, params, [p[:-2] for p in PROMPTS], [[p[-2:]] for p in PROMPTS], images=SEEN
    )
    logits = model.apply({"params": params}, TOKENS, images=IMAGES)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    for row, (own,) in enumerate(found):
        expected = sum(log_probs[row, n - 1, TOKENS[row, n]] for n in (-2, -1))
        assert own.log_likelihood == pytest.approx(float(expected), abs=1e-4)


def test_other_images_change_the_text(read):
    model, params = read("llava-1.5")
    first = [[IMAGES[0, 0], IMAGES[0, 1]], [IMAGES[0, 1]], []]
    assert texts(model, params, images=first) != golden("llava-1.5")["greedy"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (SEEN[:2], "images must give a list for each of 3 prompts; it gives 2"),
        ([[], *SEEN[1:]], r"prompt 1 has 18 tokens for images \(id 5\), and 0 images"),
        ([*SEEN[:2], [IMAGES[0, 0]]], r"prompt 3 has 0 tokens for images \(id 5\), and 1 images"),
        (None, "prompt 1 has 18 tokens for images"),
    ],
)
def test_images_and_their_tokens_must_be_as_many(read, images, message):
    with pytest.raises(DoraError, match=message):
        texts(*read("llava-1.5"), images=images)


def test_a_model_that_reads_text_alone_refuses_images(read):
    model, params = read("llava-1.5")
    llama = Llama(model.config.text)
    with pytest.raises(DoraError, match="prompt 1 has images, and this model reads text alone"):
        texts(llama, params["language_model"])


@pytest.mark.slow
def test_adapters_by_row_are_of_the_language_model(read):
    model, params = read("llava-1.5")

    def adapter(pattern):
        rules = AdapterRules([(pattern, AdapterSpec("dora", rank=2, alpha=8))])
        shapes = param_shapes(Llava(model.config, rules))
        fresh = init_adapters(params, shapes, rules, jax.random.key(0))
        moved = jax.tree_util.tree_map_with_path(
            lambda path, x: x + 0.3 if path[-1].key in ("lora_b", "magnitude") else x, fresh
        )
        return rules, moved

    rules, tuned = adapter("language_model/.*/(q|v)_proj")
    bank = AdapterBank.build(params, [None, (rules, tuned)])
    found = texts(model, params, adapters=bank, adapter_of=[0, 1, 1])
    assert found[0] == golden("llava-1.5")["greedy"][0]
    alone = texts(Llava(model.config, rules), tuned)
    assert found[1:] == alone[1:]
    assert alone != golden("llava-1.5")["greedy"]
    elsewhere = AdapterBank.build(params, [adapter("vision_tower/.*/fc1")])
    with pytest.raises(DoraError, match=r"vision_tower/.*fc1.* is of another part"):
        texts(model, params, adapters=elsewhere, adapter_of=[0, 0, 0])


def test_pictures_are_opened_one_batch_at_a_time(read):
    model, params = read("llava-1.5")
    opened = []

    class Late:
        def __init__(self, row, n):
            self.row, self.n = row, n

        def __array__(self, dtype=None, copy=None):
            opened.append((self.row, self.n))
            return np.asarray(IMAGES[self.row, self.n])

    late = [[Late(n, i) for i in range(count)] for n, count in enumerate(OF_ROWS)]
    assert texts(model, params, images=late, batch_size=1) == golden("llava-1.5")["greedy"]
    assert opened == [(1, 0), (0, 0), (0, 1)]  # rows of few images first
