"""The three tasks of letters that the small masked-diffusion model and its twin learn, and their tokenizer."""

from __future__ import annotations

import hashlib
import random
import string
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"
UNKNOWN, BEGIN, END, MASK = "<unk>", "<s>", "</s>", "<mask>"
SPECIAL = (UNKNOWN, BEGIN, END, MASK)
TASKS = ("sort", "flip", "mix")
PIECE = rf"{SPACE}?[a-z]+|{SPACE}?[^a-z{SPACE}]|{SPACE}"
SHORTEST, LONGEST = 3, 12  # letters of a list
HELD_OUT = 16  # one of so many questions is never trained on


@dataclass(frozen=True)
class Item:
    """A question about different letters. sort: in the order of the alphabet. flip: backwards. mix: in any order."""

    task: str
    letters: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """As the model reads it."""
        return f"{self.task} {' '.join(self.letters)} ="

    @property
    def held_out(self) -> bool:
        """Whether it is kept for judging."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] % HELD_OUT == 0

    def answer(self, chance: random.Random) -> list[str]:
        """A right answer; chance: which of them, where several are."""
        if self.task == "sort":
            return sorted(self.letters)
        if self.task == "flip":
            return list(reversed(self.letters))
        return chance.sample(self.letters, len(self.letters))

    def right(self, text: str) -> bool:
        """Whether a text is an answer, to the letter."""
        given = text.split()
        if self.task == "mix":
            return sorted(given) == sorted(self.letters)
        return given == self.answer(random.Random())


def draw(chance: random.Random, held_out: bool) -> Item:
    """An item of the one half or the other."""
    while True:
        letters = chance.sample(string.ascii_lowercase, chance.randint(SHORTEST, LONGEST))
        item = Item(chance.choice(TASKS), tuple(letters))
        if item.held_out == held_out:
            return item


def build_tokenizer() -> Tokenizer:
    """A letter with the space before it, or the name of a task, is a token."""
    words = [*SPECIAL, *TASKS, f"{SPACE}=", *(f"{SPACE}{letter}" for letter in string.ascii_lowercase)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return tokenizer
