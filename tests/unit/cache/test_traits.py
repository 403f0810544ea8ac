"""Traits that contradict each other, or a policy's methods, are refused where the class is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thrifty import registry
from thrifty.cache.edits import Edits
from thrifty.cache.policy import CachePolicy
from thrifty.cache.rehearsing_policy import RehearsingPolicy
from thrifty.cache.traits import Traits


def nothing(self: CachePolicy, *given: object) -> Edits:
    return Edits()


def stored(self: CachePolicy, slots: int) -> dict[str, int]:
    return {"int4": slots}


ACTS = {"after_prefill": nothing}
WRONG: dict[str, tuple[dict[str, bool], dict[str, Callable[..., Any]], str]] = {
    "ragged and uniform": ({"ragged": True, "uniform": True}, ACTS, "drop one of them"),
    "exact and quantises": ({"exact": True, "quantises": True}, ACTS | {"stored": stored}, "drop exact"),
    "quantises without stored": ({"quantises": True}, ACTS, "say how many"),
    "stored without quantises": ({}, ACTS | {"stored": stored}, "set quantises"),
    "whole pages without after_decode": ({"whole_pages": True}, ACTS, "write `after_decode`"),
    "ragged without acting": ({"ragged": True}, {}, "write `after_prefill`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_contradiction_is_refused_with_what_to_do(case: str) -> None:
    traits, methods, remedy = WRONG[case]
    with pytest.raises(TypeError, match=rf"Wrong.*{remedy}"):
        type("Wrong", (CachePolicy,), {"traits": Traits(**traits), **methods})


@pytest.mark.parametrize(
    ("traits", "methods"),
    [
        (Traits(exact=True, ragged=True, biases=True), ACTS),
        (Traits(quantises=True), {"after_decode": nothing, "stored": stored}),
        (Traits(whole_pages=True, uniform=True), {"after_decode": nothing}),
        (Traits(), {}),
    ],
)
def test_what_agrees_is_taken(traits: Traits, methods: dict[str, Callable[..., Any]]) -> None:
    made = type("Right", (CachePolicy,), {"traits": traits, **methods})
    assert made.traits == traits


def test_a_method_that_is_inherited_counts() -> None:
    parent = type("Parent", (CachePolicy,), dict(ACTS))
    child: Any = type("Child", (parent,), {"traits": Traits(exact=True)})
    assert child().compresses and not child().watches_decode


def test_a_rehearsing_policy_has_no_after_prefill() -> None:
    with pytest.raises(TypeError, match="`after_prompt` stands for `after_prefill`"):
        type("Wrong", (RehearsingPolicy,), dict(ACTS))


def test_every_registered_policy_says_what_it_is_like() -> None:
    traits = {name: registry.load("cache", name).traits for name in registry.names("cache")}  # type: ignore[attr-defined]
    assert {name for name, own in traits.items() if own.quantises} == {"kivi", "minikv"}
    assert {name for name, own in traits.items() if own.uniform} == {"streaming"}
    assert {name for name, own in traits.items() if own.ragged} == {
        "ada-kv", "fastgen", "headkv", "headkv-r2", "kvmerger", "kvzip",
    }  # fmt: skip
