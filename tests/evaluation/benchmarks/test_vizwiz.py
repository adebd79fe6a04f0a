import json

import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import vizwiz
from tests.evaluation.benchmarks.published import vqa_answers, write

ROWS = [
    {
        "image": "VizWiz_val_00000000.jpg",
        "question": "What is this? And what Color is it?",
        "answers": vqa_answers("can't tell", "two", "2", "dog's", "unanswerable"),
        "answer_type": "unanswerable",
        "answerable": 0,
    },
    {
        "image": "VizWiz_val_00000001.jpg",
        "question": "what is it",
        "answers": vqa_answers("basil", "basil", "leaves"),
        "answer_type": "other",
        "answerable": 1,
    },
]
FIRST, SECOND = (row["image"] for row in ROWS)


def read(tmp_path, rows=ROWS):
    return vizwiz.read(write(tmp_path / "val.json", rows), tmp_path)


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    first, second = read(tmp_path)
    assert (first.id, first.image) == (FIRST, tmp_path / FIRST)
    assert first.prompt == (
        "What is this? and what color is it?\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert second.references == ("basil", "basil", *["leaves"] * 8)
    assert second.prompt.startswith("What is it\n")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Unanswerable.", 100),  # six of ten
        ("the two", 30),  # becomes "2", which one person said; "two" stays as it stands
        ("can't tell", 30),
        ("cant tell", 30),
        ("the dog's", 30),  # a possessive is no word of its own, as EvalAI has it
    ],
)
def test_answers_are_normalised_and_references_are_not(tmp_path, said, expected):
    report = vizwiz.score(read(tmp_path), {FIRST: said, SECOND: "Basil"}).summary()
    assert report["by_answer_type"] == {
        "other": pytest.approx(60),
        "unanswerable": pytest.approx(expected),
    }
    assert report["accuracy"] == pytest.approx((60 + expected) / 2)


def test_a_test_split_is_submitted(tmp_path):
    rows = [{"image": row["image"], "question": row["question"]} for row in ROWS]
    questions = read(tmp_path, rows)
    with pytest.raises(DoraError, match="has no reference answer"):
        vizwiz.score(questions, {})
    found = vizwiz.write_submission(questions, {FIRST: "The Can's"}, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [
        {"image": FIRST, "answer": "can 's"},
        {"image": SECOND, "answer": ""},
    ]
    assert found.missing == (SECOND,)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, r"val\.json: must hold a list of rows"),
        ([ROWS[0], {"image": "x.jpg"}], r"val\.json, row 2: has no field 'question'"),
        ([ROWS[0] | {"answers": None}], r"row 1: 'answers' must be a list of objects"),
        ([ROWS[0] | {"answer_type": 3}], r"row 1: 'answer_type' must be a text"),
        ([ROWS[0], ROWS[0]], r"val\.json: has question 'VizWiz_val_00000000\.jpg' twice"),
    ],
)
def test_a_broken_file_is_named(tmp_path, rows, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, rows)
