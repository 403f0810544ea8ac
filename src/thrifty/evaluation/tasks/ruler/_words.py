"""Keys and values that no text holds: two words, a number, or a random identifier."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator
from typing import Literal

from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.text import prose

Kind = Literal["word", "number", "uuid"]

FIRST = (
    "amber bashful breezy brisk candid cheerful clumsy cosmic curly dapper dusty eager earnest fabled feisty fluffy "
    "frosty gentle giddy glossy grumpy humble icy jolly keen lanky lively lofty mellow merry misty nimble noisy plucky "
    "polite proud quaint quiet rapid rosy rugged rusty shaggy shy silky sleepy snug spicy stormy sturdy sunny swift "
    "tidy timid vivid wary witty wobbly woolly zesty"
)
SECOND = (
    "acorn badger beacon beetle biscuit blanket bonfire bucket cactus canoe cobbler comet cricket crumpet daisy "
    "dolphin donkey drummer easel ferry fiddle gondola goose hamster harbor hedgehog igloo juggler kayak kitten "
    "lantern llama locket lobster mango marble meadow mitten moth noodle otter paddle parrot pebble pigeon pretzel "
    "puddle quilt raccoon sandal seagull sparrow teapot thimble trumpet turnip walnut weasel whistle wombat"
)
DIGITS = 7
SHORTEST, LONGEST = 4, 9  # letters of a word of a list


def keys(chance: random.Random, kind: Kind, half: Half) -> Iterator[str]:
    """Keys of a half in random order, none twice. Of two words there are some thousand, of identifiers no end."""
    if kind == "word":
        seconds = SECOND.split()
        both = [f"{first}-{second}" for first in FIRST.split() for second in seconds]
        pairs = [key for key in both if half_of(key) == half]
        yield from chance.sample(pairs, len(pairs))
        return
    seen: set[str] = set()
    while True:
        key = drawn(chance, kind)
        if key not in seen and half_of(key) == half:
            seen.add(key)
            yield key


def drawn(chance: random.Random, kind: Kind) -> str:
    """A value: a number of seven digits, or an identifier of 36 characters."""
    if kind == "number":
        return str(chance.randrange(10 ** (DIGITS - 1), 10**DIGITS))
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def vocabulary(half: Half) -> list[str]:
    """The words of a half that the package's prose writes small, in alphabetical order: more than a thousand."""
    written = set(re.findall(r"(?<!\w)[a-z]+(?!\w)", prose()))
    return sorted(word for word in written if SHORTEST <= len(word) <= LONGEST and half_of(word) == half)
