import json

import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import vqav2
from tests.evaluation.benchmarks.published import vqa_annotations, vqa_questions, write

ROWS = [(1, 42, "What is it? "), (2, 42, "Is it red?")]
ANSWERED = [(1, "other", "Two dogs", "2 dogs", "the dogs"), (2, "yes/no", "yes")]


def files(tmp_path, questions=None, annotations=None):
    return (
        write(tmp_path / "q.json", vqa_questions(*ROWS) if questions is None else questions),
        write(
            tmp_path / "a.json", vqa_annotations(ANSWERED) if annotations is None else annotations
        ),
    )


def read(tmp_path, *given):
    questions, annotations = files(tmp_path, *given)
    return vqav2.read(questions, tmp_path / "val2014", annotations)


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    first, second = read(tmp_path)
    assert first.id == "1"
    assert first.image == tmp_path / "val2014/COCO_val2014_000000000042.jpg"
    assert first.prompt == "What is it? \nAnswer the question using a single word or phrase."
    assert first.references == ("Two dogs", "2 dogs", *["the dogs"] * 8)
    assert second.groups == {"answer_type": "yes/no", "question_type": "what"}


def test_test_dev_is_about_the_images_of_test(tmp_path):
    questions = write(tmp_path / "q.json", vqa_questions(ROWS[0], subtype="test-dev2015"))
    (question,) = vqav2.read(questions, tmp_path)
    assert question.image == tmp_path / "COCO_test2015_000000000042.jpg"
    assert question.references == ()
    with pytest.raises(DoraError, match=r"question '1' has no reference answer.*submission"):
        vqav2.score([question], {"1": "x"})


def test_answers_and_references_are_normalised(tmp_path):
    # Of ten two say "2 dogs", each in his way: 0.6; eight say "dogs", which has an article less.
    questions = read(tmp_path)
    for said, expected in [("two dogs!", 60.0), ("dogs", 100.0), ("a dog", 0.0)]:
        report = vqav2.score(questions, {"1": said, "2": "Yes"}).summary()
        assert report["by_answer_type"]["other"] == pytest.approx(expected)


def test_where_all_agree_word_for_word_nothing_is_normalised(tmp_path):
    questions = read(tmp_path)
    for said, expected in [("yes", 100.0), (" yes\n", 100.0), ("Yes", 0.0), ("yes.", 0.0)]:
        report = vqav2.score(questions, {"1": "", "2": said}).summary()
        assert report["by_answer_type"]["yes/no"] == expected


def test_two_ways_of_saying_it_are_enough_to_normalise(tmp_path):
    questions = read(tmp_path, None, vqa_annotations([ANSWERED[0], (2, "yes/no", "No", "yes")]))
    report = vqav2.score(questions, {"1": "", "2": "Yes."}).summary()
    assert report["by_answer_type"]["yes/no"] == 100.0


def test_line_breaks_are_spaces_whether_normalised_or_not(tmp_path):
    annotations = vqa_annotations([(1, "other", "hot\tdog"), (2, "other", "x", "hot\ndog")])
    questions = read(tmp_path, None, annotations)
    assert vqav2.score(questions, dict.fromkeys("12", "hot\ndog")).summary()["accuracy"] == 100.0


def test_the_report_is_the_mean_over_questions_and_names_what_does_not_fit(tmp_path):
    report = vqav2.score(read(tmp_path), {"1": "2 dogs", "9": "x"}).summary()
    assert report["questions"] == 2
    assert report["accuracy"] == pytest.approx((60 + 0) / 2)
    assert report["by_question_type"] == {"what": report["accuracy"]}
    assert report["missing"] == {"count": 1, "first": ["2"]}
    assert report["extra"] == {"count": 1, "first": ["9"]}
    assert report["blank"] == report["unread"] == {"count": 0, "first": []}
    assert vqav2.score(read(tmp_path), {"1": " "}).summary()["blank"]["first"] == ["1"]


def test_a_submission_holds_every_question(tmp_path):
    out = tmp_path / "sub/test.json"
    found = vqav2.write_submission(read(tmp_path), {"2": "The dog's, 2?", "3": "x"}, out)
    assert json.loads(out.read_text()) == [
        {"question_id": 1, "answer": ""},
        {"question_id": 2, "answer": "dog 's 2"},
    ]
    assert (found.missing, found.extra) == (("1",), ("3",))
    named = read(
        tmp_path, vqa_questions(("one", 42, "?")), vqa_annotations([("one", "other", "x")])
    )
    vqav2.write_submission(named, {"one": "x"}, out)
    assert json.loads(out.read_text()) == [{"question_id": "one", "answer": "x"}]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], r"q\.json: must hold a JSON object; take the file as it is published"),
        ({"questions": []}, r"q\.json: has no field 'data_subtype' \(its fields: 'questions'\)"),
        (vqa_questions(), r"q\.json: must hold a list of rows, not empty"),
        (vqa_questions(*ROWS, (3, None, "?")), r"q\.json, row 3: 'image_id' must be a whole numb"),
        (vqa_questions(*ROWS, (3, True, "?")), r"q\.json, row 3: 'image_id' must be a whole numb"),
        (vqa_questions((1, 2, " ")), r"q\.json, row 1: 'question' must be a text, not empty; got"),
        (vqa_questions((None, 2, "?")), r"q\.json, row 1: 'question_id' must be a number or a"),
        (vqa_questions(*ROWS, (3, 1, "?")), r"a\.json: has no answers to question 3 of .*q\.json"),
        (vqa_questions(*ROWS[:1]), r"q\.json: has no question 2, which .*a\.json answers; give bo"),
        (
            {"data_subtype": "val2014", "questions": ["x"]},
            r"q\.json, row 1: must be an object with",
        ),
        ('{"data_subtype', r"q\.json: cannot be read"),
    ],
)
def test_a_broken_file_of_questions_is_named(tmp_path, questions, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, questions)


def test_a_question_twice_is_named(tmp_path):
    questions = write(tmp_path / "q.json", vqa_questions(*ROWS, ROWS[0]))
    with pytest.raises(DoraError, match=r"q\.json: has question '1' twice"):
        vqav2.read(questions, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "row 1: 'answers' must be a list of objects with 'answer', not empty"),
        ({"answers": ["yes"]}, "row 1, 'answers': must be an object with fields; got 'yes'"),
        ({"answers": [{"answer": 3}]}, "row 1: 'answers' must be a list of objects whose 'answer'"),
        ({"answer_type": None}, "row 1: 'answer_type' must be a text, not empty; got None"),
    ],
)
def test_a_broken_file_of_answers_is_named(tmp_path, changes, message):
    annotations = vqa_annotations(ANSWERED)
    annotations["annotations"][0] |= changes
    with pytest.raises(DoraError, match=rf"a\.json, {message}"):
        read(tmp_path, None, annotations)
