"""The words of questions and of statements, by kind.

Slots: `x`, `y` are phrases of objects, `group` and `other_group` plurals, `a` a phrase with its
article; a statement also has `answer`, the option that it claims, and `rest`, the other one of two.
A statement about a yes-or-no question claims the yes.
"""

from typing import NamedTuple

from dora_jax.data.scenes.families import Kind, Wording


class Words(NamedTuple):
    """How one kind of question is put.

    Attributes:
        questions: each as good as the others.
        claim: a statement that holds where `answer` is the answer.
    """

    questions: tuple[str, ...]
    claim: str


_PLAIN: dict[str, Words] = {
    "count": Words(
        ("How many {group} are there?", "How many {group} can you see?"),
        "The number of {group} is {answer}.",
    ),
    "attribute-colour": Words(
        ("What colour is the {x}?", "Which colour does the {x} have?"), "The {x} is {answer}."
    ),
    "attribute-shape": Words(
        ("What shape is the {x}?", "Which shape does the {x} have?"),
        "The shape of the {x} is: {answer}.",
    ),
    "attribute-size": Words(("Is the {x} small or large?",), "The {x} is {answer}."),
    "attribute-style": Words(("Is the {x} filled, outlined or striped?",), "The {x} is {answer}."),
    "attribute-digit": Words(
        ("Which number is the {x}?", "What number is written as the {x}?"), "The {x} is {answer}."
    ),
    "compare-number": Words(
        (
            "Are there more {group} than {other_group}?",
            "Is the number of {group} greater than the number of {other_group}?",
        ),
        "There are more {group} than {other_group}.",
    ),
    "compare-size": Words(
        ("Which is larger, the {x} or the {y}?",), "{answer} is larger than {rest}."
    ),
    "compare-digit": Words(
        ("Which is the greater number, the {x} or the {y}?",),
        "{answer} is a greater number than {rest}.",
    ),
    "digit-sum": Words(
        ("What is the sum of the {x} and the {y}?",), "The sum of the {x} and the {y} is {answer}."
    ),
    "relation-horizontal": Words(
        (
            "Is the {x} left of the {y}?",
            "Does the {x} lie to the left of the {y}?",
        ),
        "The {x} is left of the {y}.",
    ),
    "relation-vertical": Words(
        ("Is the {x} above the {y}?", "Is the {x} higher than the {y}?"),
        "The {x} is above the {y}.",
    ),
    "relation-direction": Words(
        ("Is the {x} left of, right of, above or below the {y}?",), "The {x} is {answer} the {y}."
    ),
    "relation-extreme": Words(
        ("What colour is the object that is furthest to the {side}?",),
        "The object that is furthest to the {side} is {answer}.",
    ),
    "exists": Words(("Is there {a}?", "Can you see {a}?"), "There is {a}."),
}
_OTHER: dict[str, Words] = {
    "count": Words(
        ("What is the number of {group}?", "Count the {group}."), "Of {group} one counts {answer}."
    ),
    "attribute-colour": Words(
        ("Name the colour of the {x}.", "In what colour is the {x} painted?"),
        "The {x} is painted in {answer}.",
    ),
    "attribute-shape": Words(
        ("Name the shape of the {x}.", "What is the {x}?"), "The {x} has this shape: {answer}."
    ),
    "attribute-size": Words(
        ("Of small and large, which is the {x}?",), "The size of the {x} is {answer}."
    ),
    "attribute-style": Words(
        ("How is the {x} drawn: filled, outlined or striped?",), "The {x} is drawn {answer}."
    ),
    "attribute-digit": Words(
        ("Read the {x}.", "Name the number that the {x} shows."), "The {x} shows {answer}."
    ),
    "compare-number": Words(
        (
            "Are {group} fewer than {other_group}?",
            "Is it true that {group} are outnumbered by {other_group}?",
        ),
        "The picture has fewer {group} than {other_group}.",
    ),
    "compare-size": Words(
        ("Of the {x} and the {y}, which is the bigger one?",), "{answer} is bigger than {rest}."
    ),
    "compare-digit": Words(
        ("Of the {x} and the {y}, which has the higher value?",),
        "{answer} has a higher value than {rest}.",
    ),
    "digit-sum": Words(
        ("Add up the {x} and the {y}.", "What do the {x} and the {y} make together?"),
        "The {x} and the {y} make {answer} together.",
    ),
    "relation-horizontal": Words(
        ("Does one find the {x} on the left side of the {y}?",),
        "One finds the {x} on the left side of the {y}.",
    ),
    "relation-vertical": Words(
        ("Does one find the {x} higher up than the {y}?",),
        "One finds the {x} higher up than the {y}.",
    ),
    "relation-direction": Words(
        ("Where is the {x}: left of, right of, above or below the {y}?",),
        "One finds the {x} {answer} the {y}.",
    ),
    "relation-extreme": Words(
        ("Name the colour of the {side}most object.",),
        "The {side}most object has the colour {answer}.",
    ),
    "exists": Words(
        ("Does the picture show {a}?", "Is {a} anywhere in the picture?"), "The picture shows {a}."
    ),
}
WORDINGS: dict[Wording, dict[Kind, Words]] = {"plain": _PLAIN, "other": _OTHER}  # type: ignore[dict-item]
