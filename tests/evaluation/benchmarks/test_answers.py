import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import mark, read_answers
from dora_jax.evaluation.benchmarks.question import Question
from tests.evaluation.benchmarks.published import lines


def test_answers_are_by_question_whatever_the_id_s_type(tmp_path):
    rows = [{"question_id": 1, "text": "a", "model_id": "m"}, {"question_id": "x", "text": ""}]
    assert read_answers(lines(tmp_path / "a.jsonl", rows)) == {"1": "a", "x": ""}


def test_answers_may_be_lines_that_generate_wrote(tmp_path):
    asked = {"question_id": "random/1", "prompt": "?", "image": "i.jpg", "text": "the question"}
    row = asked | {"completion": "No", "finish_reason": "stop", "log_prob": -1.5, "tokens": 1}
    assert read_answers(lines(tmp_path / "a.jsonl", [row])) == {"random/1": "No"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1}], r"a\.jsonl, line 1: has no field 'text'"),
        ([{"question_id": 1, "text": 3}], r"line 1: 'text' must be a text; got 3"),
        (
            [{"question_id": 1, "text": "a", "completion": None}],
            r"line 1: 'completion' must be a text; got None",
        ),
        ([{"question_id": None, "text": ""}], r"line 1: 'question_id' must be a number or a text"),
        (
            [{"question_id": 1, "text": "a"}, {"question_id": "1", "text": "a"}],
            r"a\.jsonl, line 2: answers question '1' again",
        ),
        ([], r"a\.jsonl: holds no answers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, rows, message):
    with pytest.raises(DoraError, match=message):
        read_answers(lines(tmp_path / "a.jsonl", rows))


def test_a_line_that_is_no_json_shows_what_one_is(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question_id": 1\n')
    with pytest.raises(DoraError, match=r'a row looks like \{"question_id": 262148000, "text"'):
        read_answers(tmp_path / "a.jsonl")


def test_marks_groups_and_what_does_not_fit():
    questions = [
        Question(str(n), None, "?", ("x",), groups={"kind": "even" if n % 2 == 0 else "odd"})
        for n in range(30)
    ]
    answers = {str(n): " x " if n < 3 else "unread" for n in range(4)}
    rule = {"x": 1.0, "unread": None}
    report = mark(questions, answers, lambda question, text: rule[text])
    summary = report.summary()
    assert summary["accuracy"] == pytest.approx(100 * 3 / 30)
    assert summary["by_kind"] == {"even": pytest.approx(200 / 15), "odd": pytest.approx(100 / 15)}
    assert summary["missing"] == {"count": 26, "first": [str(n) for n in range(4, 24)]}
    assert summary["unread"] == {"count": 1, "first": ["3"]}
    assert report.marks["3"] == report.marks["4"] == 0.0
