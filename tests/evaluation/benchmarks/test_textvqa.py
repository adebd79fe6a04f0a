import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import textvqa
from tests.evaluation.benchmarks.published import write

ROW = {
    "question_id": 34602,
    "image_id": "003a",
    "question": "what is the Brand?",
    "answers": ["Nokia's", "nokia 's", "two, lines", *["x"] * 7],
}
OCR = {"data": [{"image_id": "003a", "ocr_tokens": ["DAKOTA", "Single-Use"]}]}


def read(tmp_path, rows=(ROW,), ocr=None):
    path = write(tmp_path / "val.json", {"data": list(rows)})
    tokens = None if ocr is None else write(tmp_path / "ocr.json", ocr)
    return textvqa.read(path, tmp_path, tokens)


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    (question,) = read(tmp_path, ocr=OCR)
    assert question.prompt == (
        "What is the brand?\nReference OCR token: DAKOTA, Single-Use\n"
        "Answer the question using a single word or phrase."
    )
    assert (question.id, question.image) == ("34602", tmp_path / "003a.jpg")
    (bare,) = read(tmp_path)
    assert bare.prompt == ("What is the brand?\nAnswer the question using a single word or phrase.")


def test_an_image_without_text_keeps_the_line_of_tokens(tmp_path):
    (question,) = read(tmp_path, ocr={"data": [{"image_id": "003a", "ocr_tokens": []}]})
    assert question.prompt.split("\n")[1] == "Reference OCR token: "


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Nokia's", 60),  # two people, once the possessive is a word of its own
        ("2 lines", 30),
        ("X", 100),
        ("nokia", 0),
    ],
)
def test_answers_and_references_go_through_evalai_s_processor(tmp_path, said, expected):
    report = textvqa.score(read(tmp_path), {"34602": said}).summary()
    assert report["accuracy"] == pytest.approx(expected)


def test_a_test_split_has_no_answers(tmp_path):
    (question,) = read(tmp_path, [{k: v for k, v in ROW.items() if k != "answers"}])
    assert question.references == ()


@pytest.mark.parametrize(
    ("rows", "ocr", "message"),
    [
        ([ROW | {"answers": ["x"] * 9}], None, r"val\.json, row 1: 'answers' must be a list of 10"),
        ([ROW | {"answers": "x"}], None, r"row 1: 'answers' must be a list of texts"),
        ([ROW | {"image_id": 3}], None, r"row 1: 'image_id' must be a text"),
        ([ROW, ROW], None, r"val\.json: has question '34602' twice"),
        ([], None, r"val\.json: must hold a list of rows, not empty"),
        ([ROW | {"image_id": "b"}], OCR, r"ocr\.json: has no OCR tokens of image b of .*val\.json"),
        ([ROW], {"data": [{"image_id": "003a"}]}, r"ocr\.json, row 1: has no field 'ocr_tokens'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, rows, ocr, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, rows, ocr)
