"""What a language model becomes when it gets a token for images."""

import dataclasses

import numpy as np
import pytest

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.checkpoint.llava_parts import join_parts
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.models import towers
from tests.models.llavas import PATCHES


def joined(folder, config=CONFIG, tower="clip"):
    """Join a language model to a tower; return its parameters before and after."""
    before = our_params(hf_weights(config))
    write_hf_folder(folder / "model", config, before, tokenizer())
    towers.write_folder(folder / "tower", tower)
    join_parts(folder / "tower", folder / "model", folder / "llava")
    found = read_llava_folder(folder / "llava")
    assert found.config.image_token_id == CONFIG.vocab_size
    return before, found


def test_a_head_of_its_own_gets_the_mean_of_all_other_tokens(tmp_path):
    untied = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    before, found = joined(tmp_path, untied)
    after = found.params["language_model"]
    head, embedding = after["lm_head"]["kernel"], after["embed_tokens"]["embedding"]
    assert head.shape == embedding.T.shape == (CONFIG.hidden_size, CONFIG.vocab_size + 1)
    np.testing.assert_array_equal(head[:, :-1], before["lm_head"]["kernel"])
    np.testing.assert_allclose(head[:, -1], before["lm_head"]["kernel"].mean(axis=1), atol=1e-6)
    mean = before["embed_tokens"]["embedding"].mean(axis=0)
    np.testing.assert_allclose(embedding[-1], mean, atol=1e-6)


@pytest.mark.parametrize(("tower", "keeps"), [("clip", False), ("siglip-headless", True)])
def test_all_patches_are_seen_and_no_class_token(tmp_path, tower, keeps):
    _, found = joined(tmp_path, tower=tower)
    assert found.config.first_token is keeps
    assert found.config.image_tokens == found.config.vision.patches == PATCHES


def test_rows_that_no_token_has_are_taken_first(tmp_path):
    """Vocabularies are padded to round numbers: such a model stays as large as it was."""
    padded = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + 5)
    before, found = joined(tmp_path, padded)
    assert found.config.text.vocab_size == padded.vocab_size
    embedding = found.params["language_model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(embedding, before["embed_tokens"]["embedding"])
