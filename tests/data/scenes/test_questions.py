"""Answers against readings of their words that share nothing with the code that asks."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Kind
from dora_jax.data.scenes.questions import ask
from dora_jax.data.scenes.rows import row
from dora_jax.data.scenes.scene import Group, Object, Scene
from dora_jax.data.scenes.wordings import WORDINGS
from dora_jax.errors import DoraError
from tests.data.scenes.truth import named, one, things, where

KINDS = get_args(Kind)
ROWS = 450
# Every kind, in both wordings.
FAMILIES = [
    replace(FAMILY_A, kinds=tuple(k for k in KINDS if k != "attribute-style"), difficulty=3),
    replace(FAMILY_B, kinds=KINDS),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def rows(request):
    return request.param, [row("questions", request.param, "train", i) for i in range(ROWS)]


PATTERNS = {
    "count": [
        r"How many (.*) (?:are there|can you see)\?",
        r"What is the number of (.*)\?",
        r"Count the (.*)\.",
    ],
    "attribute-colour": [
        r"(?:What|Which) colour (?:is|does) (the .*?)(?: have)?\?",
        r"Name the colour of (the .*)\.",
        r"In what colour is (the .*) painted\?",
    ],
    "attribute-shape": [
        r"(?:What|Which) shape (?:is|does) (the .*?)(?: have)?\?",
        r"Name the shape of (the .*)\.",
        r"What is (the .*)\?",
    ],
    "attribute-size": [r"Is (the .*) small or large\?", r"Of small and large, which is (.*)\?"],
    "attribute-style": [r"How is (the .*) drawn: filled, outlined or striped\?"],
    "attribute-digit": [
        r"Which number is (the .*)\?",
        r"What number is written as (the .*)\?",
        r"Read (the .*)\.",
        r"Name the number that (the .*) shows\.",
    ],
    "compare-number": [
        r"Are there more (.*) than (.*)\?",
        r"Is the number of (.*) greater than the number of (.*)\?",
        r"Are (.*) fewer than (.*)\?",
        r"Is it true that (.*) are outnumbered by (.*)\?",
    ],
    "compare-size": [
        r"Which is larger, (the .*) or (the .*)\?",
        r"Of (the .*) and (the .*), which is the bigger one\?",
    ],
    "compare-digit": [
        r"Which is the greater number, (the .*) or (the .*)\?",
        r"Of (the .*) and (the .*), which has the higher value\?",
    ],
    "digit-sum": [
        r"What is the sum of (the .*) and (the .*)\?",
        r"Add up (the .*) and (the .*)\.",
        r"What do (the .*) and (the .*) make together\?",
    ],
    "relation-horizontal": [
        r"Is (the .*) left of (the .*)\?",
        r"Does (the .*) lie to the left of (the .*)\?",
        r"Does one find (the .*) on the left side of (the .*)\?",
    ],
    "relation-vertical": [
        r"Is (the .*) (?:above|higher than) (the .*)\?",
        r"Does one find (the .*) higher up than (the .*)\?",
    ],
    "relation-direction": [r"(?:Is|Where is) (the .*?):? left of, .* or below (the .*)\?"],
    "relation-extreme": [
        r"What colour is the object that is furthest to the (.*)\?",
        r"Name the colour of the (.*)most object\.",
    ],
    "exists": [
        r"(?:Is there|Can you see|Does the picture show) (an? .*)\?",
        r"Is (an? .*) anywhere in the picture\?",
    ],
}


def read(question):
    """What a question speaks of, by its kind."""
    found = [re.fullmatch(p, question.question) for p in PATTERNS[question.kind]]
    return next(match.groups() for match in found if match)


def true_answer(question, objects):
    """The answer by brute force over the objects."""
    kind, spoken = question.kind, read(question)
    if kind == "count":
        return str(len(named(spoken[0], objects)))
    if kind == "exists":
        return "yes" if named(spoken[0], objects) else "no"
    if kind == "compare-number":
        first, second = (len(named(s, objects)) for s in spoken)
        assert first != second
        fewer = "fewer" in question.question or "outnumbered" in question.question
        return "yes" if (first < second if fewer else first > second) else "no"
    if kind == "relation-extreme":
        ends = sorted(objects, key=lambda o: o.x)
        return ends[0 if spoken[0] == "left" else -1].colour
    x, *others = (one(s, objects) for s in spoken)
    if not others:
        value = {"shape": x.noun, "digit": str(x.value)}.get(kind.split("-")[1])
        return value or getattr(x, kind.split("-")[1])
    (y,) = others
    if kind == "compare-size":
        assert x.size != y.size
        return spoken[0 if x.size == "large" else 1]
    if kind == "compare-digit":
        assert x.value != y.value
        return spoken[0 if x.value > y.value else 1]
    return {
        "digit-sum": lambda: str(x.value + y.value),
        "relation-horizontal": lambda: "yes" if x.x < y.x else "no",
        "relation-vertical": lambda: "yes" if x.y < y.y else "no",
        "relation-direction": lambda: where(x, y),
    }[kind]()


def test_answers_are_true_and_what_is_named_is_one_object(rows):
    family, found = rows
    asked = Counter()
    for r in found:
        (question,) = r.questions
        assert question.answer == true_answer(question, things(r.scenes[0]))
        assert question.answer in question.options
        asked[question.kind] += 1
    assert set(asked) == set(family.kinds)
    assert max(asked.values()) - min(asked.values()) <= 1


def test_difficulty_is_how_many_properties_are_named():
    def most(difficulty):
        family = replace(FAMILY_A, difficulty=difficulty, kinds=("attribute-size", "exists"))
        spoken = [read(row("questions", family, "train", i).questions[0])[0] for i in range(80)]
        return max(len(s.replace(" object", "").split()) - 1 for s in spoken)

    assert [most(difficulty) for difficulty in (1, 2, 3)] == [1, 2, 3]


def test_what_is_left_of_another_is_so_by_a_margin(rows):
    for r in rows[1]:
        (question,) = r.questions
        if question.kind == "relation-extreme":
            across = sorted(o.x for o in r.scenes[0].objects)
            first, second = across[:2] if read(question)[0] == "left" else across[:-3:-1]
            assert abs(first - second) >= 0.1
        elif question.kind.startswith("relation-"):
            x, y = (one(s, things(r.scenes[0])) for s in read(question))
            across, down = abs(x.x - y.x), abs(x.y - y.y)
            assert {
                "relation-horizontal": across >= 0.1,
                "relation-vertical": down >= 0.1,
                "relation-direction": max(across, down) >= 2 * min(across, down),
            }[question.kind]


@pytest.mark.parametrize(("across", "is_told"), [(0.09, False), (0.11, True)])
def test_a_direction_is_told_of_objects_that_lie_apart(across, is_told):
    circle = Object("circle", "red", "large", "filled", 0.5, 0.5)
    square = Object("square", "blue", "large", "filled", 0.5 + across, 0.5)
    scene = Scene((circle, square), "white", 64, Group("all"))
    question = ask(scene, FAMILY_A, "relation-direction", np.random.default_rng(0))
    assert (question is not None) == is_told


def blind_scores(task, family, train, test):
    """(accuracy of the best text-only guess, chance) by kind, for exact texts and for templates."""
    questions = {
        split: [row(task, family, split, index).questions[0] for index in range(count)]
        for split, count in (("train", train), ("test", test))
    }
    scores = {}
    for name, key in (("text", lambda q: q.question), ("template", template)):
        fitted, right, kinds = defaultdict(Counter), Counter(), Counter()
        for q in questions["train"]:
            fitted[q.kind, key(q)][q.options.index(q.answer)] += 1
        chance = Counter()
        for q in questions["test"]:
            seen = fitted[q.kind, key(q)].most_common(1)
            right[q.kind] += q.options.index(q.answer) == (seen[0][0] if seen else 0)
            kinds[q.kind] += 1
            chance[q.kind] += 1 / len(q.options)
        for kind, count in kinds.items():
            scores[name, kind] = right[kind] / count, chance[kind] / count, count
    return scores


def template(question):
    """The text without what differs from scene to scene."""
    things = "red|green|blue|yellow|orange|purple|cyan|pink|small|large|filled|outlined|striped"
    nouns = "circle|square|triangle|cross|ring|star|diamond|heart|arrow|digit|object"
    return re.sub(rf"\b({things}|{nouns}|\d+)(s|es)?\b", "_", question.question)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["questions", "statements", "pairs"])
@pytest.mark.parametrize("family", [FAMILY_A, FAMILY_B], ids=lambda family: family.name)
def test_a_blind_guess_stays_near_chance(family, task):
    per_kind = 80 if task == "pairs" else 100
    kinds = 5 if task == "pairs" else len(family.kinds)
    scores = blind_scores(task, family, 2 * per_kind * kinds, per_kind * kinds)
    for name, (score, chance, count) in scores.items():
        # Three deviations of a fair coin's luck, and a point.
        assert score < chance + 3 * (chance * (1 - chance) / count) ** 0.5 + 0.01, name
    mean = np.mean([score - chance for score, chance, _ in scores.values()])
    assert mean < 0.04


def test_the_blind_guess_finds_what_the_words_give_away(monkeypatch):
    # The check itself must be able to fail: here most things are of the first colour.
    family = replace(FAMILY_B, kinds=("relation-extreme",), colours=("red", "blue"))
    monkeypatch.setattr("dora_jax.data.scenes.sample._some", lambda choices, rng: choices[:1])
    scores = blind_scores("questions", family, 200, 200)
    score, chance, _ = scores["template", "relation-extreme"]
    assert score > chance + 0.1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", ["count", "digit-sum", "attribute-digit", "exists"])
def test_options_come_equally_often(family, kind):
    family = replace(family, kinds=(kind,))
    by_options = defaultdict(Counter)
    for index in range(600):
        (question,) = row("questions", family, "train", index).questions
        by_options[question.options][question.answer] += 1
    for options, counts in by_options.items():
        observed = [counts[option] for option in options]
        assert stats.chisquare(observed).pvalue > 1e-3, (options, observed)


def test_no_question_is_put_in_both_wordings():
    plain, other = ({q for w in WORDINGS[n].values() for q in w.questions} for n in WORDINGS)
    assert set(WORDINGS["plain"]) == set(WORDINGS["other"]) == set(KINDS)
    assert not plain & other


def test_conversations_ask_different_things_of_one_scene():
    lengths = Counter()
    for index in range(60):
        r = row("conversations", FAMILY_B, "train", index)
        assert len({q.kind for q in r.questions}) == len(r.questions)
        for question in r.questions:
            assert question.answer == true_answer(question, things(r.scenes[0]))
        lengths[len(r.questions)] += 1
    assert set(lengths) <= {1, 2, 3, 4}
    assert lengths[3] + lengths[4] > 30


def test_counts_in_conversations_are_balanced_too():
    answers = Counter()
    for index in range(900):
        for question in row("conversations", FAMILY_A, "train", index).questions:
            if question.kind == "count" and question.options[0] == "0":
                answers[question.answer] += 1
    assert sum(answers.values()) > 200
    assert stats.chisquare([answers[str(n)] for n in range(5)]).pvalue > 1e-3


def test_a_question_that_no_scene_has_is_refused():
    lonely = replace(FAMILY_A, counts=(1, 1), most_counted=1, kinds=("compare-number",))
    with pytest.raises(DoraError, match=r"Family A: none of .* of kind compare-number"):
        row("questions", lonely, "train", 0)
