"""Documents about people and towns that do not exist, so that nobody can know the answers without reading."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thrifty.evaluation.halves import Half, half_of

SYLLABLES = (
    "ba bel bri cor da del dor el fen gal ha hes il jor ka kel lo lun mar mi mor na nim or pel pol quo ra ren ros sa "
    "sar tam tel tor tu ul vel vin wex ya yel zan zor"
)
GIVEN = (
    "Ada Boris Clara Dario Edith Felix Greta Hugo Irene Jonas Klara Leo Mira Nora Oscar Petra Quinn Rosa Simon Tessa"
)
JOBS = "baker carpenter doctor farmer gardener lawyer painter pilot plumber sailor singer tailor teacher translator"
INSTRUMENTS = "accordion banjo bassoon cello clarinet drum flute guitar harp oboe piano trumpet tuba violin"
GOODS = "apples bells blankets boots candles cheese clocks glass honey knives lace paper rope salt soap tea wool"
PERSON = (
    "{name} was born in {town} in {year}. By trade {name} is a {job}, with a small shop and few customers. In the "
    "evening {name} plays the {instrument}."
)
TOWN = "{town} is a town in {country}. It lies on the river {river} and is known for its {goods}."


@dataclass(frozen=True)
class Person:
    """An invented person."""

    name: str
    town: str
    year: str
    job: str
    instrument: str

    def text(self) -> str:
        """What a document says."""
        return PERSON.format(**vars(self))


@dataclass(frozen=True)
class Town:
    """An invented town, where a person was born."""

    town: str
    country: str
    river: str
    goods: str

    def text(self) -> str:
        """What a document says."""
        return TOWN.format(**vars(self))


def invented(chance: random.Random, half: Half) -> Iterator[str]:
    """Names of a half without end, none twice."""
    syllables = SYLLABLES.split()
    seen: set[str] = set()
    while True:
        name = "".join(chance.choices(syllables, k=chance.choice((2, 3)))).capitalize()
        if name not in seen and len(name) > 3 and half_of(name) == half:
            seen.add(name)
            yield name


def pairs(chance: random.Random, half: Half) -> Iterator[tuple[Person, Town]]:
    """People and the towns of their birth without end; nothing but jobs, instruments and goods comes twice."""
    names = invented(chance, half)
    given, jobs, instruments, goods = (words.split() for words in (GIVEN, JOBS, INSTRUMENTS, GOODS))
    while True:
        town = next(names)
        person = Person(
            f"{chance.choice(given)} {next(names)}",
            town,
            str(chance.randrange(1700, 2000)),
            chance.choice(jobs),
            chance.choice(instruments),
        )
        yield person, Town(town, next(names), next(names), chance.choice(goods))


def about_a_person(chance: random.Random, person: Person) -> tuple[str, str]:
    """(a question that one document answers, the answer)."""
    return chance.choice(
        [
            (f"In which town was {person.name} born?", person.town),
            (f"In which year was {person.name} born?", person.year),
            (f"What is the trade of {person.name}?", person.job),
            (f"Which instrument does {person.name} play?", person.instrument),
        ]
    )


def about_a_birthplace(chance: random.Random, person: Person, town: Town) -> tuple[str, str]:
    """(a question that takes a person's document and a town's, the answer)."""
    return chance.choice(
        [
            (f"In which country was {person.name} born?", town.country),
            (f"On which river lies the town where {person.name} was born?", town.river),
            (f"For what goods is the town known where {person.name} was born?", town.goods),
        ]
    )


def numbered(texts: Sequence[str]) -> str:
    """Documents below one another, with their numbers."""
    return "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(texts, 1))
