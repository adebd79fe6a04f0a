import pytest

from dora_jax.data.world import (
    CONTINENTS,
    DEFAULT_RELATIONS,
    RELATIONS,
    split_of,
    world_examples,
)
from dora_jax.errors import DoraError

SPLITS = ("train", "validation", "evaluation")
EVERYTHING = 100_000


def subject(example):
    start, end = RELATIONS[example.task].question.split("{}")
    assert example.prompt.startswith(start)
    assert example.prompt.endswith(end)
    return example.prompt[len(start) : len(example.prompt) - len(end)]


@pytest.fixture(scope="module")
def rows():
    return {split: world_examples(tuple(RELATIONS), split, EVERYTHING) for split in SPLITS}


def answers(relation, subject):
    return {fact.answer for fact in RELATIONS[relation].facts() if fact.subject == subject}


def test_known_facts():
    assert answers("country-capital", "France") == {"Paris"}
    assert answers("country-currency", "Japan") == {"Yen"}
    assert answers("country-continent", "Kenya") == {"Africa"}
    assert answers("city-country", "Osaka") == {"Japan"}
    assert answers("city-continent", "Chicago") == {"North America"}
    assert answers("country-neighbour", "Portugal") == {"Spain"}
    assert answers("country-neighbour", "Denmark") == {"Germany"}


def test_cities_lie_where_their_time_zone_does():
    assert answers("city-continent", "Nizhniy Novgorod") == {"Europe"}
    assert not answers("city-continent", "Novosibirsk")  # in Asia, in a country of Europe
    assert not answers("city-continent", "Honolulu")


def test_no_entity_is_asked_about_in_two_splits(rows):
    subjects = {split: {subject(e).casefold() for e in rows[split]} for split in SPLITS}
    assert all(len(found) > 100 for found in subjects.values())
    assert not subjects["train"] & subjects["evaluation"]
    assert not subjects["train"] & subjects["validation"]
    assert not subjects["validation"] & subjects["evaluation"]


@pytest.mark.parametrize("split", ["validation", "evaluation"])
def test_held_out_entities_are_asked_about_once(rows, split):
    subjects = [subject(e) for e in rows[split]]
    assert len(set(subjects)) == len(subjects)


def test_a_held_out_capital_is_not_given_away(rows):
    capitals = {e.answer for e in rows["evaluation"] if e.task == "country-capital"}
    assert len(capitals) > 10
    asked = {subject(e) for e in rows["train"] if e.task == "city-country"}
    assert not capitals & asked
    learned = {e.answer for e in rows["train"] if e.task == "country-capital"}
    assert {split_of(capital, 0) for capital in learned} == {"train"}


def test_no_border_of_a_held_out_country_is_trained_on(rows):
    borders = [e for e in rows["train"] if e.task == "country-neighbour"]
    assert len(borders) > 100
    assert {split_of(e.answer, 0) for e in borders} == {"train"}
    borders = [e for e in rows["validation"] if e.task == "country-neighbour"]
    assert {split_of(e.answer, 0) for e in borders} <= {"train", "validation"}


def test_dissolved_countries_are_left_out(rows):
    texts = {text for split in SPLITS for e in rows[split] for text in (subject(e), *e.options)}
    assert not texts & {"Serbia and Montenegro", "Netherlands Antilles"}
    assert "Serbia" in texts


def test_options(rows):
    for split in SPLITS:
        for example in rows[split]:
            expected = 6 if example.task.endswith("continent") else 4
            assert len(set(example.options)) == len(example.options) == expected
            assert example.answer in example.options
            name = subject(example).casefold()
            assert example.answer.casefold() not in name
            assert name not in example.answer.casefold()


def test_wrong_neighbours_are_no_neighbours(rows):
    found = [e for split in SPLITS for e in rows[split] if e.task == "country-neighbour"]
    for e in found:
        near = answers("country-neighbour", subject(e))
        assert near & set(e.options) == {e.answer}
        # Borders have two sides.
        assert all(subject(e) in answers("country-neighbour", name) for name in near)


def test_continents_are_balanced():
    found = world_examples(["city-continent"], "evaluation", 120)
    counts = {name: sum(e.answer == name for e in found) for name in CONTINENTS.values()}
    assert set(counts.values()) == {20}


def test_the_default_mix_takes_relations_in_turn():
    found = [e.task for e in world_examples((), "train", 8)]
    assert found == [*DEFAULT_RELATIONS, *DEFAULT_RELATIONS]


def test_deterministic_by_seed():
    one = world_examples((), "evaluation", 50, seed=1)
    assert one == world_examples((), "evaluation", 50, seed=1)
    assert one != world_examples((), "evaluation", 50, seed=2)
    # More rows begin with the same ones.
    assert world_examples((), "evaluation", 80, seed=1)[:50] == one


def test_an_unknown_relation_names_the_nearest():
    with pytest.raises(DoraError, match=r"unknown relation 'city-contient' \(did you mean 'city-c"):
        world_examples(["city-contient"], "train", 5)
