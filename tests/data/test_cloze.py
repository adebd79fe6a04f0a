"""Questions with listed options, asked in words."""

import dataclasses
import json

import pytest

from dora_jax.data.cloze import cloze
from dora_jax.data.formats import read_row
from dora_jax.data.splits import NOT_CLOZE, read_examples
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig


def example(instruction, answer):
    row = {
        "instruction": instruction,
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }
    return read_row(row, "here")


@pytest.mark.parametrize(
    ("instruction", "answer", "prompt", "options", "text"),
    [
        (
            "Please choose the correct answer to the question: Which is hot?\n\n"
            "Answer1: ice Answer2: steam Answer3: a cold day\n\n"
            "Answer format: answer1/answer2/answer3",
            "answer2",
            "Which is hot?",
            ("ice", "steam", "a cold day"),
            "steam",
        ),
        (
            "Please choose the correct solution to the question: how to stay dry\n\n"
            "Solution1: Take an umbrella: a large one\n\nSolution2: Stand in the rain\n\n"
            "Answer format: solution1/solution2",
            "solution1",
            "how to stay dry",
            ("Take an umbrella: a large one", "Stand in the rain"),
            "Take an umbrella: a large one",
        ),
        (
            "Please choose the correct ending to complete the given sentence: Ice: She falls\n\n"
            "Ending1: and gets up. Ending2: upwards.\n\nAnswer format: ending1/ending2",
            "ending1",
            "Ice: She falls",
            ("and gets up.", "upwards."),
            "and gets up.",
        ),
        (
            "Please choose the correct answer to fill in the blank to complete the given sentence: "
            "Ann thanked Bea, because _ had helped.\n\n"
            "Option1: Ann Option2: Bea Answer format: option1/option2",
            "option2",
            "Ann thanked Bea, because _ had helped.",
            ("Ann", "Bea"),
            "Bea",
        ),
        (
            "Please answer the following question with true or false, question: is water wet?\n\n"
            "Answer format: true/false",
            "true",
            "is water wet?",
            ("true", "false"),
            "true",
        ),
        # The question speaks of a label itself: the list is the last of each.
        (
            "Please choose the correct answer to the question: What does Answer1: mean?\n\n"
            "Answer1: a label Answer2: nothing\n\nAnswer format: answer1/answer2",
            "answer1",
            "What does Answer1: mean?",
            ("a label", "nothing"),
            "a label",
        ),
    ],
)
def test_the_answer_is_the_option_s_own_text(instruction, answer, prompt, options, text):
    found = cloze(example(instruction, answer))
    assert (found.prompt, found.options, found.answer) == (prompt, options, text)


ALIKE = (
    "Please choose the correct answer to the question: Which?\n\n"
    "Answer1: this Answer2: this\n\nAnswer format: answer1/answer2"
)
NO_LIST = (
    "Please choose the correct answer to the question: Which?\n\nAnswer format: answer1/answer2"
)


@pytest.mark.parametrize("instruction", [ALIKE, NO_LIST])
def test_options_that_cannot_be_told_apart_are_no_cloze(instruction):
    assert cloze(example(instruction, "answer1")) is None


def test_what_lists_no_options_is_as_it_was():
    free = read_row({"instruction": "Say hello", "output": "hello"}, "here")
    assert cloze(free) is free
    given = read_row({"instruction": "Which?", "output": "a", "options": ["a", "b"]}, "here")
    assert cloze(given) is given


def test_rows_are_read_in_the_form_that_is_asked_for(tmp_path):
    def write(name, questions, extra=()):
        rows = [
            {
                "instruction": f"Please choose the correct answer to the question: {q}?\n\n"
                "Answer1: yes Answer2: no\n\nAnswer format: answer1/answer2",
                "output": "the correct answer is answer2",
                "answer": "answer2",
            }
            for q in questions
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]))
        return path

    alike = {
        "instruction": ALIKE,
        "output": "the correct answer is answer1",
        "answer": "answer1",
    }
    config = DataConfig(
        train=write("train.jsonl", "abcdef", [alike]),
        eval=write("eval.jsonl", "ghi"),
        validation_rows=2,
        form="cloze",
    )
    found = read_examples(config)
    assert {e.options for e in found.splits["evaluation"]} == {("yes", "no")}
    assert {e.prompt for e in found.splits["evaluation"]} == {"g?", "h?", "i?"}
    assert found.left_out["train"][NOT_CLOZE] == 1
    only_alike = write("alike.jsonl", "", [alike])
    with pytest.raises(DoraError, match=r"alike\.jsonl: no row lists its options.*as_given"):
        read_examples(dataclasses.replace(config, eval=only_alike))
