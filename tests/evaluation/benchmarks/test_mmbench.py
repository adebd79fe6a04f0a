import csv
import sys

import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import mmbench, mmbench_sheet
from tests.evaluation.benchmarks.published import PIXEL, mmbench_table

TURN = 1_000_000
ROWS = [
    (7, "Which?", ("red", "blue"), {"answer": "A", "hint": "Look."}),
    (8, "What?", ("cat", "dog", "eel"), {"answer": "C", "category": "animal"}),
    (7 + TURN, "Which?", ("blue", "red"), {"answer": "B", "hint": "Look.", "image": "7"}),
    (8 + TURN, "What?", ("dog", "eel", "cat"), {"answer": "B", "category": "animal"}),
    (8 + 2 * TURN, "What?", ("eel", "cat", "dog"), {"answer": "A", "category": "animal"}),
]
RIGHT = {str(index): given["answer"] for index, _, _, given in ROWS}


def table(tmp_path, rows=ROWS, **columns):
    return mmbench_table(tmp_path / "mmbench_dev.tsv", rows, **columns)


def read(tmp_path, rows=ROWS):
    return mmbench.read(table(tmp_path, rows))


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    questions = read(tmp_path)
    assert questions[0].prompt == (
        "Look.\nWhich?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert questions[1].prompt.startswith("What?\nA. cat\nB. dog\nC. eel\nAnswer")
    assert [q.id for q in questions] == list(RIGHT)
    assert questions[1].references == ("C",)
    assert questions[1].groups == {"category": "animal", "l2-category": "perception"}


def test_images_are_bytes_and_a_row_may_name_another_s(tmp_path):
    rows = [(7, "?", "ab", {}), (7 + TURN, "?", "ba", {"image": "7"})]
    assert [q.image for q in read(tmp_path, rows)] == [PIXEL, PIXEL]


def test_an_image_may_be_long(tmp_path):
    (question,) = read(tmp_path, [(7, "?", "ab", {"image": "AAAA" * 100_000})])
    assert question.image == b"\0" * 300_000
    assert csv.field_size_limit() < 400_000  # for other readers it is what it was


@pytest.mark.parametrize("absent", ["", "nan", "None", "none", "NA", "N/A", "n/a", "NULL", "null"])
def test_options_end_at_the_first_that_is_absent(tmp_path, absent):
    (question,) = read(tmp_path, [(7, "?", ("x", "y", absent, "z"), {"hint": absent})])
    assert question.options == ("x", "y")
    assert question.prompt.startswith("?\n")


def test_a_question_counts_if_every_rotation_is_right(tmp_path):
    questions = read(tmp_path)
    report = mmbench.score(questions, RIGHT).summary()
    assert (report["questions"], report["rotations"], report["accuracy"]) == (2, 5, 100.0)
    # One wrong turn of three, and the question is lost.
    report = mmbench.score(questions, RIGHT | {str(8 + TURN): "C"}).summary()
    assert report["accuracy"] == 50.0
    assert report["by_category"] == {"animal": 0.0, "colour": 100.0}
    assert report["by_l2-category"] == {"perception": 50.0}
    assert report["missing"]["count"] == report["unread"]["count"] == 0


def test_a_missing_turn_or_one_without_an_option_is_wrong(tmp_path):
    questions = read(tmp_path)
    answers = dict(RIGHT) | {"8": "no idea", "9": "A"}
    del answers[str(7 + TURN)]
    report = mmbench.score(questions, answers).summary()
    assert report["accuracy"] == 0.0
    assert report["missing"] == {"count": 1, "first": [str(7 + TURN)]}
    assert report["unread"] == {"count": 1, "first": ["8"]}
    assert report["extra"] == {"count": 1, "first": ["9"]}
    assert report["incomplete"] == {"count": 0, "first": []}


def test_an_option_is_told_by_its_text_too(tmp_path):
    said = RIGHT | {"8": "It is an eel.", "7": "(A) red"}
    assert mmbench.score(read(tmp_path), said).summary()["accuracy"] == 100.0


def test_a_table_without_all_rotations_is_said(tmp_path):
    report = mmbench.score(read(tmp_path, ROWS[:-1]), RIGHT).summary()
    assert report["incomplete"] == {"count": 1, "first": ["8"]}
    report = mmbench.score(read(tmp_path, ROWS[:2] + ROWS[3:]), RIGHT).summary()
    assert report["incomplete"] == {"count": 1, "first": ["7"]}


def test_a_question_is_called_by_its_first_rotation_wherever_that_stands(tmp_path):
    report = mmbench.score(read(tmp_path, ROWS[::-1]), RIGHT)
    assert sorted(report.whole.marks) == ["7", "8"]


def test_a_test_split_is_read_and_not_scored(tmp_path):
    rows = [(i, q, o, {}) for i, q, o, _ in ROWS]
    questions = mmbench.read(table(tmp_path, rows, columns=("category",)))
    assert questions[0].references == ()
    assert questions[0].groups == {"category": "colour"}
    with pytest.raises(DoraError, match="question '7' has no reference"):
        mmbench.score(questions, RIGHT)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(7, "?", "ab", {"answer": "C"})], r"row 1: 'answer' must be one of A, B; got 'C'"),
        ([(7, "?", "a", {})], r"row 1: 'B' must be an option"),
        ([(7, " ", "ab", {})], r"row 1: 'question' must be a text, not empty"),
        ([("x", "?", "ab", {})], r"row 1: 'index' must be a whole number; got 'x'"),
        ([(7, "?", "ab", {"image": "%%%"})], r"row 1: 'image' must be an image in base64"),
        ([(7, "?", "ab", {"image": "1234"})], r"row 1: 'image' must be .* the index of a row"),
        ([ROWS[0], ROWS[0]], r"mmbench_dev\.tsv: has question '7' twice"),
        ([ROWS[0], (8, "?\t", "ab", {})], r"row 2: has not as many cells as the header"),
        ([], r"mmbench_dev\.tsv: holds no questions"),
    ],
)
def test_a_broken_table_is_named(tmp_path, rows, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, rows)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DoraError, match=r"none\.tsv: cannot be read"):
        mmbench.read(tmp_path / "none.tsv")
    path = table(tmp_path)
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(DoraError, match=r"mmbench_dev\.tsv.*: cannot be read"):
        mmbench.read(path)


def test_the_sheet_for_the_server(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    out = tmp_path / "sub/m.xlsx"
    answers = {"7": "=1+1", "8": "C\x0b", "9": "x"}
    found = mmbench_sheet.write_submission(table(tmp_path, ROWS[:3]), answers, out)
    sheet = openpyxl.load_workbook(out).active
    header, first, second, third = sheet.iter_rows(values_only=True)
    assert header == (
        *("index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category"),
    )
    assert first == (7, "Which?", "red", "blue", None, None, "=1+1", "colour", "perception")
    assert sheet["G2"].data_type == "s"  # no formula
    assert second[4:7] == ("eel", None, "C")
    assert third[6] is None
    assert (found.missing, found.extra) == ((str(7 + TURN),), ("9",))


def test_without_openpyxl_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DoraError, match=r"m\.xlsx: needs openpyxl: pip install 'dora-jax\[bench"):
        mmbench_sheet.write_submission(table(tmp_path), {}, tmp_path / "m.xlsx")
