"""The words of the hybrid recall model: cities, other words, and nothing else."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from thrifty.evaluation.tasks import _lists
from thrifty.evaluation.tasks._haystack import NAMES

SPACE = "\u2581"
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def build_tokenizer() -> Tokenizer:
    """A token a word; words stand between spaces."""
    words = dict.fromkeys([UNKNOWN, BEGIN, END, *(SPACE + word for word in (*NAMES, *_lists.WORDS))])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE)
    tokenizer.decoder = decoders.Metaspace(SPACE)
    tokenizer.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
    return tokenizer
