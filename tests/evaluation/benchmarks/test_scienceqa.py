import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import scienceqa
from tests.evaluation.benchmarks.published import problem, write

PROBLEMS = {
    "4": problem(1, hint=" "),
    "5": problem(0, image="image.png", hint="Metals shine.\nMost do."),
    "6": problem(2, ("a", "b", "c"), image="choice.png", subject="language science"),
    "7": problem(),
}
SPLITS = {"train": ["7"], "test": ["4", "5", "6"]}


def read(tmp_path, problems=PROBLEMS, splits=SPLITS, split="test"):
    return scienceqa.read(
        write(tmp_path / "problems.json", problems),
        write(tmp_path / "pid_splits.json", splits),
        tmp_path / "test",
        split,
    )


def test_questions_are_asked_as_llava_asks_them(tmp_path):
    text_only, pictured, third = read(tmp_path)
    assert text_only.prompt == (
        "Which is a metal?\nA. iron\nB. wood\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert pictured.prompt == (
        "Context: Metals shine.\nMost do.\nWhich is a metal?\nA. iron\nB. wood\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (text_only.image, text_only.references) == (None, ("B",))
    assert pictured.image == tmp_path / "test/5/image.png"
    assert third.references == ("C",)


def test_the_subset_with_images_alone(tmp_path):
    files = (tmp_path / "problems.json", tmp_path / "pid_splits.json")
    read(tmp_path)
    found = scienceqa.read(*files, tmp_path, only_with_image=True)
    assert [question.id for question in found] == ["5", "6"]


def test_accuracy_with_and_without_an_image(tmp_path):
    report = scienceqa.score(read(tmp_path), {"4": " B\n", "5": "A. iron", "6": "b"}).summary()
    assert report["accuracy"] == pytest.approx(200 / 3)
    assert report["by_image"] == {"with": 50.0, "without": 100.0}
    assert report["by_subject"] == {"language science": 0.0, "natural science": 100.0}
    assert report["unread"] == {"count": 1, "first": ["6"]}


def test_a_letter_that_is_not_on_offer_is_wrong(tmp_path):
    report = scienceqa.score(read(tmp_path), {"4": "E", "5": "", "6": "C"}).summary()
    assert report["accuracy"] == pytest.approx(100 / 3)
    assert report["unread"]["first"] == report["blank"]["first"] == ["5"]


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ({"4": problem(2)}, r"problems\.json, problem 4: 'answer' must be from 0 to 1; got 2"),
        ({"4": problem(-1)}, r"problem 4: 'answer' must be a whole number, from 0; got -1"),
        (
            {"4": problem(choices=["x"])},
            r"problem 4: 'choices' must be a list of two texts or more",
        ),
        ({"4": problem(hint=3)}, "problem 4: 'hint' must be a text"),
        ({"4": problem(image=3)}, "problem 4: 'image' must be a text"),
        ({"5": problem()}, r"problems\.json: has no problem 4, which is in 'test' of .*pid_splits"),
    ],
)
def test_broken_problems_are_named(tmp_path, problems, message):
    with pytest.raises(DoraError, match=message):
        read(tmp_path, problems, {"test": ["4"]})


def test_broken_splits_are_named(tmp_path):
    with pytest.raises(
        DoraError, match=r"no split 'tests' \(did you mean 'test'\?\); it has train"
    ):
        read(tmp_path, split="tests")
    with pytest.raises(DoraError, match=r"pid_splits\.json: 'test' must be a list of texts"):
        read(tmp_path, splits={"test": [4]})
    with pytest.raises(DoraError, match=r"pid_splits\.json, 'test': holds no questions"):
        read(tmp_path, splits={"test": []})
