"""The tokens of the small masked-diffusion model and its twin: letters, and the names of their tasks."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from thrifty.evaluation.letters import TASKS

SPACE = "\u2581"
UNKNOWN, BEGIN, END, MASK = "<unk>", "<s>", "</s>", "<mask>"
SPECIAL = (UNKNOWN, BEGIN, END, MASK)
PIECE = rf"{SPACE}?[a-z]+|{SPACE}?[^a-z{SPACE}]|{SPACE}"


def build_tokenizer() -> Tokenizer:
    """A letter with the space before it, or the name of a task, is a token."""
    words = [*SPECIAL, *TASKS, f"{SPACE}=", *(f"{SPACE}{letter}" for letter in string.ascii_lowercase)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return tokenizer
