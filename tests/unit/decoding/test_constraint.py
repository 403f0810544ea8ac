"""Masks against trying every token, forks, and what a constraint refuses."""

from __future__ import annotations

import importlib.util
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.tiny import EOS, VOCABULARY, ByteTokenizer

from thrifty.arrays import Flags
from thrifty.decoding.constraint import Constraint
from thrifty.decoding.grammar import Grammar
from thrifty.decoding.grammars import KEPT, Grammars
from thrifty.errors import MissingExtra, PromptError
from thrifty.models.tokens.grammar_vocabulary import GrammarVocabulary

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "bé": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": Grammar.json_schema(SCHEMA),
    "regex": Grammar.regex("(ab|ac|a[0-9]{2})+x?"),
    "choice": Grammar.choice(["red", "réd", "re"]),
    "lark": Grammar.lark('start: "(" start? ")"'),
}


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(ByteTokenizer(), VOCABULARY)


@pytest.fixture
def grammars(vocabulary: GrammarVocabulary) -> Grammars:
    return Grammars(lambda: vocabulary)


def tried(constraint: Constraint) -> Flags:
    """Which tokens may come, by trying each."""
    allowed = np.zeros(VOCABULARY, np.bool_)
    for token in range(VOCABULARY):
        try:
            constraint.fork().commit(token)
            allowed[token] = True
        except PromptError:
            pass
    return allowed


@pytest.mark.parametrize("kind", GRAMMARS)
@pytest.mark.long
def test_masks_are_what_trying_every_token_finds(grammars: Grammars, kind: str) -> None:
    source = random.Random(kind)
    constraint = grammars.constraint(GRAMMARS[kind])
    for _ in range(12):
        allowed = constraint.allowed()
        assert allowed.any() and np.array_equal(allowed, tried(constraint))
        token = source.choice(np.flatnonzero(allowed).tolist())
        if token == EOS or token > 255:
            break
        constraint.commit(token)


def test_masked_scores_are_a_copy_without_what_may_not_come(grammars: Grammars) -> None:
    constraint = grammars.constraint(GRAMMARS["regex"])
    scores = np.arange(VOCABULARY, dtype=np.float32)
    masked = constraint.masked(scores)
    assert masked.dtype == np.float32 and np.array_equal(scores, np.arange(VOCABULARY, dtype=np.float32))
    assert np.flatnonzero(np.isfinite(masked)).tolist() == [ord("a")] and masked[ord("a")] == ord("a")


def test_a_fork_and_its_origin_go_their_own_ways(grammars: Grammars) -> None:
    first = grammars.constraint(GRAMMARS["regex"])
    first.commit(ord("a"))
    second = first.fork()
    first.commit(ord("b"))
    second.commit(ord("1"))
    assert np.flatnonzero(second.allowed()).tolist() == list(b"0123456789")
    assert {ord("a"), ord("x"), EOS} <= set(np.flatnonzero(first.allowed()).tolist())
    fresh = grammars.constraint(GRAMMARS["regex"])
    assert np.flatnonzero(fresh.allowed()).tolist() == [ord("a")], "the kept one was not moved"


def test_behind_the_end_anything_may_come(grammars: Grammars) -> None:
    constraint = grammars.constraint(Grammar.choice(["a"]))
    for token in (ord("a"), EOS, ord("z")):
        assert constraint.allowed()[token]
        constraint.commit(token)
    assert constraint.fork().allowed().all()


def test_what_may_not_come_is_refused(grammars: Grammars) -> None:
    with pytest.raises(PromptError, match="token 98 is not in the grammar"):
        grammars.constraint(GRAMMARS["regex"]).commit(ord("b"))


def test_the_latest_grammars_are_kept(vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.decoding import grammars as module

    compiled: list[Grammar] = []
    compile_now = module._compiled
    monkeypatch.setattr(module, "_compiled", lambda own, *more: compiled.append(own) or compile_now(own, *more))
    own = Grammars(lambda: vocabulary)
    many = [Grammar.regex(f"a{{{count}}}") for count in range(1, KEPT + 2)]
    for grammar in (*many[:2], many[0], *many[2:]):
        own.compile(grammar)
    assert compiled == many
    own.compile(Grammar.regex("a{1}"))
    assert compiled == many, "it was used after the second"
    own.compile(many[1])
    assert compiled == [*many, many[1]]


def test_threads_may_compile_at_once(grammars: Grammars) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(grammars.compile, [Grammar.regex(f"b{{{count % 3 + 1}}}") for count in range(12)]))
    assert np.flatnonzero(grammars.constraint(Grammar.regex("b{2}")).allowed()).tolist() == [ord("b")]


def test_a_mask_that_cannot_be_made_is_the_samples_own_error() -> None:
    class Broken:
        def unsafe_compute_mask_ptr(self, place: int, nbytes: int) -> None:
            pass

        def is_error(self) -> bool:
            return True

        def get_error(self) -> str:
            return "too complex"

    broken: Any = Broken()
    with ThreadPoolExecutor(1) as pool, pytest.raises(PromptError, match="cannot go on: too complex"):
        Constraint(broken, VOCABULARY, (EOS,), pool).allowed()


def test_without_the_library_or_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(ByteTokenizer):
        eos_ids = ()  # type: ignore[assignment]

    with pytest.raises(PromptError, match="no token that ends an answer"):
        GrammarVocabulary(Endless(), VOCABULARY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'thrifty-engine\[grammar\]'"):
        GrammarVocabulary(ByteTokenizer(), VOCABULARY)
