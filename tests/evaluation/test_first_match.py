"""The paper's protocol, against its rules as they are described."""

import jax
import numpy as np
import pytest

from dora_jax.evaluation.first_match import first_match, judge, option_words
from dora_jax.evaluation.writing import write_answers
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.data.rows import random_row

STEM = "the correct answer is "


def row(words, correct=0):
    found = random_row(0, 5, [3] * len(words), correct=correct)
    texts = tuple(STEM + word for word in words)
    return found.__class__(**{**vars(found), "option_texts": texts, "text": texts[correct]})


def test_options_are_told_apart_by_what_they_do_not_share():
    assert option_words([STEM + "true", STEM + "false"]) == ("true", "false")
    assert option_words(["yes", "no"]) == ("yes", "no")
    # One that is the beginning of the other keeps its last word.
    assert option_words(["a b", "a b c"]) == ("b", "b c")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the correct answer is answer2", "answer2"),
        ("answer3, not answer1", "answer3"),
        ("Answer1", None),  # case counts
        ("it is the second", None),
        # Of the task, if not of this row: an answer, and a wrong one.
        ("answer5 or answer1", "answer5"),
        ("answer1 ### Response: answer2", "answer2"),
        ("answer1 ### Response: ", None),
        ("answer1 ### Response: answer2 ### Response: answer3", "answer3"),
    ],
)
def test_the_first_match_after_the_last_response_counts(text, found):
    assert first_match(text, ["answer1", "answer2", "answer3"]) == found


def test_words_of_other_tasks_are_searched_longest_first():
    assert first_match("blue green", ["blue", "blue green"]) == "blue green"
    assert first_match("false: not true", ["true", "false"]) == "false"
    assert first_match("a.b", ["a.b", "c"]) == "a.b"
    assert first_match("axb", ["a.b", "c"]) is None


def test_a_text_is_right_wrong_or_no_answer():
    asked = row(["solution1", "solution2"], correct=1)
    assert judge(asked, "solution2") is True
    assert judge(asked, "solution1") is False
    assert judge(asked, "") is None


def test_every_row_gets_its_own_text_whatever_the_batches():
    params = jax.tree.map(np.asarray, our_params(hf_weights()))
    words = tokenizer()
    rows = [
        random_row(seed, length, [2, 2], CONFIG.vocab_size) for seed, length in enumerate((9, 3, 6))
    ]
    sampling = Sampling(max_new_tokens=4, num_beams=2)
    counted = []
    found = write_answers(Llama(CONFIG), params, rows, sampling, 2, words, counted.append)
    for one, text in zip(rows, found, strict=True):
        (ids,) = generate_ids(
            Llama(CONFIG), {"params": params}, [one.prompt], sampling, words.end_ids
        )
        assert text == words.decode(ids)
    assert sum(counted) == 9 + 3 + 6 + 3 * 4
