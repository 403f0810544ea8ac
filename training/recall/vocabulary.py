"""The words that the recall model knows, and the tokenizer that cuts text into them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from thrifty.evaluation.tasks import _lists, recall, tracing
from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.evaluation.text import prose

SPACE = "\u2581"
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SIZE = 2048
# A word, a digit or a sign, each with the space before it; a line break alone.
PIECE = rf"\n|{SPACE}?[A-Za-z]+(?:'[a-z]+)?|{SPACE}?[^A-Za-z\n{SPACE}]|{SPACE}"
SIGNS = ".,;:?!()'\"-/&%$"


def pieces(text: str) -> list[str]:
    """A text cut as the tokenizer cuts it, unknown words included."""
    return re.findall(PIECE, text.replace(" ", SPACE))


def templates() -> Iterator[str]:
    """Text with every word of the tasks, as it stands behind a space or at the beginning of a line."""
    texts = [recall.NEEDLE, recall.QUESTION, recall.LEAD, _lists.QUESTION, _lists.LEAD]
    texts += [tracing.LINK, tracing.QUESTION, tracing.LEAD]
    texts += [_lists.QUESTION_MANY, _lists.LEAD_MANY, *NAMES, *_lists.WORDS, *"0123456789", *SIGNS]
    texts += ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    for text in texts:
        yield re.sub(r"{\w+}", "", text)
        yield " " + re.sub(r"{\w+}", "", text)


def vocabulary(size: int = SIZE) -> dict[str, int]:
    """Special tokens, the words of the tasks, then the commonest of the package's prose: id by spelling."""
    needed = Counter(piece for text in templates() for piece in pieces(text))
    common = Counter(pieces(prose()))
    ranked = sorted(common, key=lambda piece: (-common[piece], piece))
    words = dict.fromkeys([UNKNOWN, BEGIN, END, "\n", SPACE, *sorted(needed), *ranked])
    return {word: number for number, word in enumerate(list(words)[:size])}


def build_tokenizer(size: int = SIZE) -> Tokenizer:
    """Word by word, digit by digit. Decoding gives the text back, but for words that are not known."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(size), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
    return tokenizer
