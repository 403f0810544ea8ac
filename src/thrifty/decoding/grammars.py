"""Grammars of a model, compiled by `llguidance` (Moskal et al. 2024): the latest ones are kept."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from thrifty.decoding.constraint import Constraint, reason
from thrifty.decoding.grammar import Grammar
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from thrifty.models.tokens.grammar_vocabulary import GrammarVocabulary

KEPT = 32
KEPT_BYTES = 16 << 20
COMPILED = {"json_schema": 128 << 10, "lark": 128 << 10, "regex": 16 << 10, "choice": 16 << 10}
COMPILED_A_BYTE = 64
"""Bytes of a compiled grammar, and more of them for each byte of its text."""
WHITESPACE = r"[ \t]|\r?\n[ \t]{0,16}"
"""Whitespace between two tokens of JSON: a space, or a new line with its indent. A model that loves it would never come
to an end.
"""


class Grammars:
    """Compiles grammars, from any thread. vocabulary: gives that of the model; asked with the first grammar.

    The latest are kept, at most `KEPT` of them and `KEPT_BYTES` by estimate: a larger one is compiled anew each time.
    """

    def __init__(self, vocabulary: Callable[[], GrammarVocabulary]) -> None:
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None

    def bytes_with(self, grammar: Grammar) -> int:
        """About what the vocabulary and the grammars that are kept take, with this one among them. Raises as `compile`
        does where the vocabulary cannot be made.
        """
        with self._lock:
            others = [compiled_bytes(known) for known in self._compiled if known != grammar]
        return self._vocabulary().nbytes + sum(others[1 - KEPT :]) + compiled_bytes(grammar)

    def forget(self) -> None:
        """Let the grammars go that no answer uses; they are compiled anew where they are asked for."""
        with self._lock:
            self._compiled.clear()

    def compile(self, grammar: Grammar) -> None:
        """Have a grammar ready for `constraint`. Raises PromptError that says why it cannot be compiled, MissingExtra
        without `llguidance`.
        """
        self._matcher(grammar)

    def constraint(self, grammar: Grammar) -> Constraint:
        """A new answer's constraint. Raises as `compile` does."""
        matcher, vocabulary = self._matcher(grammar).deep_copy(), self._vocabulary()
        with self._lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "thrifty-grammar")
            return Constraint(matcher, vocabulary.size, vocabulary.ends, self._worker)

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        """At the beginning of a text; nobody moves it on."""
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
                return known
        compiled = _compiled(grammar, self._vocabulary())
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > KEPT or sum(map(compiled_bytes, self._compiled)) > KEPT_BYTES:
                self._compiled.popitem(last=False)
        return compiled


def compiled_bytes(grammar: Grammar) -> int:
    """About what a compiled grammar takes, more rather than less: the library does not tell. As measured: 90 to 260 kB
    for JSON schemas of 1 to 50 fields, 15 kB for regular expressions.
    """
    return COMPILED[grammar.kind] + COMPILED_A_BYTE * len(grammar.text.encode())


def _compiled(grammar: Grammar, vocabulary: GrammarVocabulary) -> LLMatcher:
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(vocabulary.native, _source(grammar), log_level=0)
    except ValueError as error:
        raise PromptError(f"the grammar ({grammar.kind}) cannot be compiled: {error}") from error
    if matcher.is_error():
        raise PromptError(f"the grammar ({grammar.kind}) cannot be compiled: {reason(matcher.get_error())}")
    return matcher


def _source(grammar: Grammar) -> str:
    """The grammar as the library takes it."""
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, {"whitespace_pattern": WHITESPACE})
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            texts = [json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text)]
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)
