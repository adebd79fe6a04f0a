import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import pope
from tests.evaluation.benchmarks.published import lines


def row(number, label, **changes):
    text = "Is there a cat in the image?"
    return {"question_id": number, "image": "i.jpg", "text": text, "label": label} | changes


RANDOM = [row(1, "yes"), row(2, "yes"), row(3, "no"), row(4, "no"), row(5, "yes")]
POPULAR = [row(1, "no"), row(2, "yes")]


def read(tmp_path, **subsets):
    given = subsets or {"random": RANDOM, "popular": POPULAR}
    files = [lines(tmp_path / f"coco_pope_{n}.json", rows) for n, rows in given.items()]
    return pope.read(files, tmp_path)


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    questions = read(tmp_path)
    assert [q.id for q in questions] == [
        *(f"random/{n}" for n in range(1, 6)),
        *("popular/1", "popular/2"),
    ]
    assert questions[0].prompt == (
        "Is there a cat in the image?\nAnswer the question using a single word or phrase."
    )
    assert questions[0].image == tmp_path / "i.jpg"


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("No", True),
        ("no", True),
        ("No, there is none", True),
        ("There is not any", True),
        ("Yes", False),
        ("Yes. There is no dog", False),  # the first sentence alone
        ("NO", False),  # by the published rule
        ("Nothing", False),
        ("no,thing", False),  # commas go before words are told
        ("no\nthere", False),  # by spaces alone
        ("There is none", False),
        ("", False),
        ("maybe", False),
    ],
)
def test_what_says_no(text, no):
    assert pope.says_no(text) == no


def test_figures_of_each_subset_and_the_mean_f1(tmp_path):
    answers = {
        "random/1": "Yes",  # true yes
        "random/2": "No",  # false no
        "random/3": "Yes",  # false yes
        "random/4": "No",  # true no
        "random/5": "yes, one",  # true yes
        "popular/1": "no",  # true no
        "popular/2": "no",  # false no
        "popular/3": "no",
    }
    report = pope.score(read(tmp_path), answers).summary()
    first, second = report["subsets"]["random"], report["subsets"]["popular"]
    assert first == {
        "questions": 5,
        "accuracy": pytest.approx(60),
        "precision": pytest.approx(200 / 3),
        "recall": pytest.approx(200 / 3),
        "f1": pytest.approx(200 / 3),
        "yes_ratio": pytest.approx(60),
    }
    assert second == {
        "questions": 2,
        "accuracy": 50.0,
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
        "yes_ratio": 0.0,
    }
    assert report["f1"] == pytest.approx(100 / 3)
    assert report["extra"]["first"] == ["popular/3"]


def test_f1_is_of_precision_and_recall(tmp_path):
    rows = [row(n, "yes") for n in range(4)] + [row(n, "no") for n in range(4, 8)]
    answers = {f"random/{n}": "Yes" if n in (0, 4, 5) else "No" for n in range(8)}
    found = pope.score(read(tmp_path, random=rows), answers).summary()["subsets"]["random"]
    assert (found["precision"], found["recall"]) == (pytest.approx(100 / 3), 25.0)
    assert found["f1"] == pytest.approx(200 / (3 + 4))  # harmonic mean of 1/3 and 1/4
    assert found["yes_ratio"] == pytest.approx(37.5)


def test_a_missing_answer_is_a_wrong_one(tmp_path):
    questions = read(tmp_path, random=[row(1, "yes"), row(2, "no")])
    report = pope.score(questions, {}).summary()
    assert report["subsets"]["random"]["accuracy"] == 0.0
    assert report["subsets"]["random"]["yes_ratio"] == 50.0
    assert report["missing"] == {"count": 2, "first": ["random/1", "random/2"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(1, "Yes")],
            r"coco_pope_random\.json, line 1: 'label' must be 'yes' or 'no'; got 'Yes'",
        ),
        ([row(1, "yes"), row(2, "no", text=None)], "line 2: 'text' must be a text"),
        ([row(1, "yes"), row(1, "no")], r"coco_pope_random\.json: has question 'random/1' twice"),
        (["x"], r"line 1: must be an object with fields"),
        ([], r"coco_pope_random\.json: holds no questions"),
    ],
)
def test_a_broken_file_is_named(tmp_path, rows, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, random=rows)


def test_a_broken_line_shows_one_of_pope(tmp_path):
    (tmp_path / "coco_pope_random.json").write_text('{"label" 1}\n')
    with pytest.raises(DoraError, match=r'random\.json, line 1, column \d+: is not JSON.*"label"'):
        pope.read([tmp_path / "coco_pope_random.json"], tmp_path)


def test_two_files_of_one_subset_are_refused(tmp_path):
    files = [lines(tmp_path / f"{n}_random.json", RANDOM) for n in ("a", "b")]
    with pytest.raises(
        DoraError, match=r"a_random\.json, .*b_random\.json: has question 'random/1'"
    ):
        pope.read(files, tmp_path)
