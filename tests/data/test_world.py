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


def test_known_facts(rows):
    facts = {(e.task, subject(e)): e for split in SPLITS for e in rows[split]}
    assert facts["country-capital", "France"].answer == "Paris"
    assert facts["country-currency", "Japan"].answer == "Yen"
    assert facts["country-continent", "Kenya"].answer == "Africa"
    assert facts["city-country", "Osaka"].answer == "Japan"
    assert facts["city-continent", "Chicago"].answer == "North America"
    borders = {e.answer for split in SPLITS for e in rows[split] if subject(e) == "Portugal"}
    assert "Spain" in borders


def test_cities_lie_where_their_time_zone_does(rows):
    cities = {subject(e): e.answer for s in SPLITS for e in rows[s] if e.task == "city-continent"}
    assert cities["Nizhniy Novgorod"] == "Europe"
    assert "Novosibirsk" not in cities  # in Asia, in a country of Europe
    assert "Honolulu" not in cities


def test_no_entity_is_asked_about_in_two_splits(rows):
    subjects = {split: {subject(e).casefold() for e in rows[split]} for split in SPLITS}
    assert all(len(found) > 100 for found in subjects.values())
    assert not subjects["train"] & subjects["evaluation"]
    assert not subjects["train"] & subjects["validation"]
    assert not subjects["validation"] & subjects["evaluation"]


def test_no_border_of_a_held_out_country_is_trained_on(rows):
    borders = [e for e in rows["train"] if e.task == "country-neighbour"]
    assert len(borders) > 100
    assert {split_of(e.answer, 0) for e in borders} == {"train"}


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
    true = {
        (subject(e), e.answer)
        for split in SPLITS
        for e in rows[split]
        if e.task == "country-neighbour"
    }
    for split in SPLITS:
        for e in rows[split]:
            if e.task == "country-neighbour":
                listed = {(subject(e), option) for option in e.options}
                assert listed & true == {(subject(e), e.answer)}


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
