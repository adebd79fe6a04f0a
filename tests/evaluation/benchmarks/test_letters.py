import pytest

from dora_jax.evaluation.benchmarks.letters import option_letter, scienceqa_letter

OPTIONS = ("a red ball", "a blue box", "A red ball and a cup", "water")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("E", "E"),
        ("F", None),
        ("b", None),
        ("B. wood", "B"),
        ("F. wood", None),
        ("B.", None),  # by the published rule a space has to follow
        ("B) wood", None),
        ("So B. wood", None),
        ("I think: The answer is C.", "C"),
        ("The answer is C, I think", "C"),
        ("The answer is C", None),  # a sign has to follow
        ("The answer is B. The answer is C.", None),
        ("A. The answer is B.", "A"),
        ("the answer is B.", None),
        ("", None),
        ("wood", None),
    ],
)
def test_the_letter_of_scienceqa(text, letter):
    assert scienceqa_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B: a blue box", "B"),
        ("The answer is D.", "D"),
        ("A", "A"),
        ("A.", "A"),
        ("Answer is A", "A"),
        ("A good long answer", None),
        ("A or B", None),
        ("E", None),  # no option
        ("b", None),
        # By the option's text.
        ("It is WATER", "D"),
        ("a blue box", "B"),
        ("a red ball and a cup", None),  # two options' texts
        ("water " + "x" * 84, "D"),  # 90 signs: not over twice the options' 45
        ("water " + "x" * 85, None),
        ("", None),
    ],
)
def test_the_option_of_mmbench(text, letter):
    assert sum(map(len, OPTIONS)) == 45
    assert option_letter(text, OPTIONS) == letter
