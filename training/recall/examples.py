"""Training examples in the words of the evaluation's tasks, made on the fly; none is an item of an evaluation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tokenizers import Tokenizer

from thrifty.evaluation.tasks import _lists, recall, tracing
from thrifty.evaluation.tasks._haystack import NAMES, sentences
from training.recall.vocabulary import BEGIN, END, SPACE, UNKNOWN

NEEDLE_TOKENS, QUESTION_TOKENS = 14, 27  # at most, with numbers of six digits
CHAIN_TOKENS, CITY_TOKENS = 36, 13  # of a chain and its question; of every city of it
PLAIN = -1  # of a token: part of no answer


@dataclass
class Example:
    """Token ids, and for each the number of the answer that it belongs to, or PLAIN. cuts: where sentences begin."""

    tokens: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, tokens: list[int], answer: bool = False) -> None:
        """Put tokens behind the last; `answer`: they are one answer."""
        self.cuts.append(len(self.tokens))
        self.tokens += tokens
        self.answers += [self.count if answer else PLAIN] * len(tokens)
        self.count += answer


class Writer:
    """Writes examples of up to a wanted number of tokens. All chance comes from the caller."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        numbers = tokenizer.get_vocab()
        self._begin, self.end, self.unknown = (numbers[one] for one in (BEGIN, END, UNKNOWN))
        self._prose = [self.ids(" " + one) for one in sentences()]
        used = {one for sentence in self._prose for one in sentence}
        self._words = sorted(numbers[word] for word in numbers if re.fullmatch(rf"{SPACE}[a-z]{{2,}}", word))
        self._words = [one for one in self._words if one in used]

    def ids(self, text: str) -> list[int]:
        """The token ids of a piece of text."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def write(self, kind: str, chance: random.Random, length: int, keys: int) -> Example:
        """One example of a kind: `drill`, `copy`, `recall`, `aggregation` or `tracing`."""
        kinds: Mapping[str, Callable[[Example, random.Random, int, int], None]] = {
            "drill": self._drill,
            "copy": self._copy,
            "recall": self._recall,
            "aggregation": self._aggregation,
            "tracing": self._tracing,
        }
        example = Example()
        example.add([self._begin])
        kinds[kind](example, chance, length, keys)
        del example.tokens[length:], example.answers[length:]
        return example

    def _drill(self, example: Example, chance: random.Random, length: int, keys: int) -> None:
        """The same few needles again and again: a number that was told before is an answer."""
        facts = recall.secrets(chance, chance.randint(1, keys), digits(chance))
        told: set[str] = set()
        while len(example.tokens) < length:
            name, number = chance.choice(facts)
            example.add(self.ids(f" {recall.LEAD.format(name=name)}"))
            example.add(self.ids(f" {number}."), name in told)
            told.add(name)

    def _copy(self, example: Example, chance: random.Random, length: int, keys: int) -> None:
        """A few groups of words in random order, several times: all but the first of one told before are answers.

        Every word is one of its own.
        """
        groups = [chance.choices(self._words, k=chance.randint(3, 6)) for _ in range(chance.randint(2, 2 * keys))]
        told: set[int] = set()
        while len(example.tokens) < length:
            place = chance.randrange(len(groups))
            for number, word in enumerate(groups[place]):
                example.add([word], number > 0 and place in told)
            told.add(place)

    def _recall(self, example: Example, chance: random.Random, length: int, keys: int) -> None:
        """Needles in a haystack, then questions in any order, some of them twice."""
        count = min(max(2, length // 50), 64)
        keys = min(keys, max(1, (length - QUESTION_TOKENS * count) // NEEDLE_TOKENS))
        facts = recall.secrets(chance, chance.randint(1, keys), digits(chance))
        questions = [self._question(chance, *chance.choice(facts)) for _ in range(count)]
        room = length - 2 - sum(len(asked) + len(told) for asked, told in questions)
        self._context(example, chance, [self.ids(" " + recall.NEEDLE.format(name=a, number=b)) for a, b in facts], room)
        for asked, told in questions:
            example.add(asked)
            example.add(told, True)

    def _question(self, chance: random.Random, name: str, number: str) -> tuple[list[int], list[int]]:
        breaks = "\n" * chance.choice((1, 1, 2))
        question, lead = recall.QUESTION.format(name=name), recall.LEAD.format(name=name)
        return self.ids(f"{breaks}{question}\n{lead}"), self.ids(f" {number}.\n")

    def _context(self, example: Example, chance: random.Random, needles: list[list[int]], room: int) -> None:
        """Prose or random words, with needles at random places; those that have no room are not the caller's fault."""
        room -= sum(map(len, needles))
        body: list[list[int]] = []
        place = chance.randrange(len(self._prose))
        noise = chance.random() < 0.3
        while room > 0:
            sentence = chance.choices(self._words, k=chance.randint(5, 30)) if noise else self._prose[place]
            body.append(sentence[:room])
            room -= len(sentence)
            place = (place + 1) % len(self._prose)
        for needle in needles:
            body.insert(chance.randint(0, len(body)), needle)
        for sentence in body:
            example.add(sentence)
        example.add(self.ids("\n"))

    def _aggregation(self, example: Example, chance: random.Random, length: int, keys: int) -> None:
        """A list of words, of which one or some come most often; some are named as they first appear."""
        many = chance.choice((1, 1, 1, 2, 3))
        asked, lead = _lists.QUESTION, _lists.LEAD
        if many > 1:
            asked, lead = _lists.QUESTION_MANY.format(count=many), _lists.LEAD_MANY
        question = self.ids(f"\n\n{asked}\n{lead}")
        words = chance.sample(_lists.WORDS, len(_lists.WORDS))
        common, rest = words[:many], words[many:]
        total = (length - len(question) - 2 * many - 4) // 2
        often = max(2, round(total * chance.uniform(0.3, 0.6) / many))
        listed = common * often + [rest[place % len(rest)] for place in range(total - often * many)]
        chance.shuffle(listed)
        example.add(self.ids(", ".join(listed) + "."))
        example.add(question)
        example.add(self.ids(f" {', '.join(sorted(common, key=listed.index))}.\n"), True)

    def _tracing(self, example: Example, chance: random.Random, length: int, keys: int) -> None:
        """Chains of cities that hand a number on; which cities have it? No chain is asked for twice: the second answer
        could be copied from the first.
        """
        size = chance.randint(1, 4)
        most = min(len(NAMES) // size, 8, (length - 2) // (CHAIN_TOKENS + size * CITY_TOKENS))
        chains = chance.randint((most + 1) // 2, most)
        names = chance.sample(NAMES, size * chains)
        groups = [names[size * one : size * (one + 1)] for one in range(chains)]
        numbers = [number for _, number in recall.secrets(chance, chains, digits(chance))]
        questions = []
        for place in chance.sample(range(chains), chains):
            number, listed = numbers[place], ", ".join(groups[place])
            breaks = "\n" * chance.choice((1, 1, 2))
            question, lead = tracing.QUESTION.format(number=number), tracing.LEAD.format(number=number)
            questions.append((self.ids(f"{breaks}{question}\n{lead}"), self.ids(f" {listed}.\n")))
        room = length - 2 - sum(len(asked) + len(told) for asked, told in questions)
        self._chains(example, chance, groups, numbers, room)
        for asked, told in questions:
            example.add(asked)
            example.add(told, True)

    def _chains(
        self, example: Example, chance: random.Random, groups: list[list[str]], numbers: list[str], room: int
    ) -> None:
        told = []
        for group, number in zip(groups, numbers, strict=True):
            told.append([recall.NEEDLE.format(name=group[0], number=number)])
            told[-1] += [tracing.LINK.format(name=b, other=a) for a, b in pairwise(group)]
        order = [place for place, chain in enumerate(told) for _ in chain]
        chance.shuffle(order)
        sources = [iter(chain) for chain in told]
        needles = [self.ids(" " + next(sources[place])) for place in order]
        self._ordered(example, chance, needles, room)

    def _ordered(self, example: Example, chance: random.Random, needles: list[list[int]], room: int) -> None:
        """Prose with needles at random places, in their order."""
        room -= sum(map(len, needles))
        body, place = [], chance.randrange(len(self._prose))
        while room > 0:
            body.append(self._prose[place][:room])
            room -= len(body[-1])
            place = (place + 1) % len(self._prose)
        places = sorted(chance.choices(range(len(body) + 1), k=len(needles)))
        for at, needle in reversed(list(zip(places, needles, strict=True))):
            body.insert(at, needle)
        for sentence in body:
            example.add(sentence)
        example.add(self.ids("\n"))


def digits(chance: random.Random) -> int:
    """How many digits the numbers of an example have: four mostly, as the tasks have."""
    return 4 if chance.random() < 0.8 else chance.choice((2, 3, 5, 6))


def spread(chance: random.Random, example: Example, length: int, context: int) -> list[int]:
    """Positions with gaps between sentences, up to `context`: a short example with the distances of a long one.

    (PoSE, arXiv 2309.10400.)
    """
    starts = sorted(chance.sample(example.cuts, min(len(example.cuts), chance.randint(1, 4))))
    free = context - length
    jumps = sorted(chance.randint(0, free) for _ in starts)
    positions, gap, place = [], 0, 0
    for token in range(length):
        while place < len(starts) and starts[place] <= token:
            gap, place = jumps[place], place + 1
        positions.append(token + gap)
    return positions
