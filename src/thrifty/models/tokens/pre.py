"""How text is cut into words before byte-level merges, by the name that GGUF files give it (`tokenizer.ggml.pre`).

The patterns are the models' own, from their tokenizer.json files: a vocabulary's merges only fit the cut that they
were learned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?%s*%s+%s|[^\r\n\p{L}\p{N}]?%s+%s*%s"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Cut:
    """One way to cut: by `patterns`, one after another (none: the one of GPT-2), each digit on its own if `digits`,
    after NFC if `compose`.

    `whole_words` takes a word that is a token without running the merges (`ignore_merges`); `bos` is the default for
    files that do not say whether to begin with BOS.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    compose: bool = False
    whole_words: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """The equivalent of the `tokenizers` library."""
        from tokenizers import Regex, pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.patterns)
        steps: list[PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        return pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level


DEFAULT = "default"
_GPT2 = Cut()
_DIGITS = Cut(digits=True)
_LLAMA3 = Cut(patterns=(_WORDS + r"|\p{N}{1,3}" + _TAIL,), whole_words=True, bos=True)
_QWEN2 = Cut(patterns=(_WORDS + r"|\p{N}" + _TAIL,), compose=True)
_TEKKEN = Cut(
    patterns=(_CASED % (_UPPER, _LOWER, "", _UPPER, _LOWER, "") + r"|\p{N}" + _SLASH_TAIL,),
    whole_words=True,
    bos=True,
)
_GPT4O = Cut(patterns=(_CASED % (_UPPER, _LOWER, _SUFFIX, _UPPER, _LOWER, _SUFFIX) + r"|\p{N}{1,3}" + _SLASH_TAIL,))

# What llama.cpp does without a name: GPT-2's cut between runs of punctuation and of digits, and digits in threes.
_GUESSED = Cut(patterns=(r"[\p{P}$+<=>^~|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9]{3}"))

CUTS: Mapping[str, Cut] = {
    DEFAULT: _GUESSED,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "jais": _GPT2,
    "olmo": Cut(compose=True),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "stablelm2": Cut(patterns=(_WORDS + r"|\p{N}" + _TAIL,)),
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
}


def cut(name: str) -> Cut:
    """The cut of that name. Raises CheckpointError with the nearest one: a wrong cut would damage every prompt."""
    if name not in CUTS:
        raise CheckpointError(
            f"'tokenizer.ggml.pre' is '{name[:80]}', a pre-tokenizer that is not supported. {nearest(name, CUTS)}"
        )
    return CUTS[name]
