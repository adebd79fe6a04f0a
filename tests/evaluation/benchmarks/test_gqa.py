import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import gqa
from tests.evaluation.benchmarks.published import gqa_question, write

ROWS = {
    "20": gqa_question("What color is it?", "red"),
    "21": gqa_question("Is it red?", "yes", "verify"),
    "22": gqa_question("Who is it?", "man"),
}


def read(tmp_path, rows=ROWS):
    return gqa.read(write(tmp_path / "q.json", rows), tmp_path)


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    first, second, _ = read(tmp_path)
    assert (first.id, first.references) == ("20", ("red",))
    assert first.image == tmp_path / "n1.jpg"
    assert first.prompt == "What color is it?\nAnswer the question using a single word or phrase."
    assert first.groups["answers"] == "open"
    assert second.groups == {
        "structural": "verify",
        "semantic": "attr",
        "detailed": "colorQuery",
        "answers": "binary",
    }


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("red", True),
        (" Red.\n", True),
        ("red..", True),
        ("the red", False),  # nothing else is made alike
        ("red!", False),
        ("", False),
    ],
)
def test_exact_match(tmp_path, said, right):
    report = gqa.score(read(tmp_path), {"20": said}).summary()
    assert report["accuracy"] == pytest.approx(100 / 3 if right else 0)


def test_references_are_compared_as_they_stand(tmp_path):
    rows = {"1": gqa_question("Who is it?", "Batman")}
    assert gqa.score(read(tmp_path, rows), {"1": "Batman"}).summary()["accuracy"] == 0.0


def test_by_types(tmp_path):
    report = gqa.score(read(tmp_path), {"20": "red", "21": "yes", "22": "dog"}).summary()
    assert report["accuracy"] == pytest.approx(200 / 3)
    assert report["by_answers"] == {"binary": 100.0, "open": 50.0}
    assert report["by_structural"] == {"query": 50.0, "verify": 100.0}
    assert report["by_semantic"] == {"attr": pytest.approx(200 / 3)}


def test_every_type_but_query_is_binary(tmp_path):
    for structural in ("verify", "choose", "logical", "compare"):
        (question,) = read(tmp_path, {"1": gqa_question("?", "x", structural)})
        assert question.groups["answers"] == "binary"


def test_a_split_without_answers_is_read_and_not_scored(tmp_path):
    rows = {"1": {"question": "What?", "imageId": "n2", "isBalanced": True}}
    (question,) = read(tmp_path, rows)
    assert (question.references, question.groups) == ((), {})
    with pytest.raises(DoraError, match="question '1' has no reference"):
        gqa.score([question], {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, r"q\.json: holds no questions"),
        (
            {"7": gqa_question("", "x")},
            r"q\.json, question 7: 'question' must be a text, not empty",
        ),
        ({"7": gqa_question("?", "x", imageId=3)}, r"question 7: 'imageId' must be a text"),
        ({"7": gqa_question("?", "x", types={})}, "question 7, 'types': has no field 'structural'"),
        ({"7": gqa_question("?", None)}, "question 7: 'answer' must be a text"),
        ({"7": []}, "question 7: must be an object with fields"),
    ],
)
def test_a_broken_file_is_named(tmp_path, rows, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, rows)


def test_a_question_may_have_no_detailed_type(tmp_path):
    types = {"structural": "query", "semantic": "cat", "detailed": None}
    (question,) = read(tmp_path, {"1": gqa_question("?", "x", types=types)})
    assert question.groups == {"structural": "query", "semantic": "cat", "answers": "open"}
