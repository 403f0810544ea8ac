"""Which recipes stand for harsher ones, and which can be the best."""

from __future__ import annotations

from typing import Any

import pytest

from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.gentleness import deciding, gentler
from thrifty.frontier.measurement import Need, Prediction
from thrifty.frontier.space import space
from thrifty.recipe import Recipe

KIVI = {"technique": "kivi", "bits": 4}
SNAPKV = {"technique": "snapkv", "capacity": 512}
RTN = {"technique": "rtn", "bits": 4}
KVZIP = {"technique": "kvzip", "keep": 0.5}
KVMERGER = {"technique": "kvmerger", "keep": 0.5}
HEADKV = {"technique": "headkv", "capacity": 512}
FASTGEN = {"technique": "fastgen", "recovery": 0.95}


def of(*cache: dict[str, Any], weights: tuple[dict[str, Any], ...] = ()) -> Candidate:
    recipe = Recipe(weights=list(weights), cache=list(cache))
    return Candidate(recipe, Grid.ON if weights else Grid.SHIPPED)


def predicted(candidate: Candidate, seconds: float = 1.0) -> Prediction:
    return Prediction(candidate, Need(1, 0, 0, 0), seconds, 0, seconds)


@pytest.mark.parametrize(
    ("mild", "harsh"),
    [
        (of(), of(KIVI)),
        (of(KIVI), of(KIVI | {"bits": 2})),
        (of(KIVI | {"bits": 2, "group": 16}), of(KIVI | {"bits": 2})),
        (of(KIVI), of(SNAPKV, KIVI)),
        (of(SNAPKV), of(SNAPKV | {"capacity": 256})),
        (of(SNAPKV), of(SNAPKV, KIVI)),
        (of(KIVI), of(KIVI, weights=(RTN,))),
        (of(weights=(RTN,)), of(weights=(RTN | {"group": 128},))),
        (of(weights=(RTN,)), of(weights=(RTN | {"symmetric": True},))),
        (of(weights=(RTN,)), of(weights=(RTN | {"embedding_bits": 4},))),
        (of(weights=(RTN | {"bits": 8},)), of(weights=(RTN,))),
        (of(KVZIP), of(KVZIP | {"keep": 0.25})),
        (of(KVZIP), of(KVZIP, KIVI)),
        (of(KVMERGER), of(KVMERGER | {"keep": 0.4})),
        (of(HEADKV), of(HEADKV | {"capacity": 256})),
        (of(FASTGEN | {"recovery": 0.98}), of(FASTGEN)),
        (
            of(weights=(RTN | {"skip": ["layers.*", "embedding"], "embedding_bits": 4},)),
            of(weights=(RTN | {"skip": ["layers.*"], "embedding_bits": 4},)),
        ),
    ],
)
def test_less_of_the_same_is_gentler(mild: Candidate, harsh: Candidate) -> None:
    assert gentler(mild, harsh) and not gentler(harsh, mild)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of(KIVI), of(KIVI)),
        (of(KIVI), of(SNAPKV)),
        (of(KIVI), of(weights=(RTN,))),
        (of(KIVI | {"bits": 2}), of(SNAPKV, KIVI)),
        (of(SNAPKV, KIVI | {"bits": 8}), of(SNAPKV | {"capacity": 1024}, KIVI)),
        (of(SNAPKV | {"capacity": None, "keep": 0.25}), of(SNAPKV)),
        (of(SNAPKV), of(SNAPKV | {"window": 8})),
        (of(KVZIP), of(KVZIP | {"level": "head"})),
        (of(KVZIP), of(SNAPKV)),
        (of(HEADKV), of(HEADKV | {"capacity": 256, "beta": 1.5})),
        (of(weights=(RTN,)), Candidate(Recipe(weights=[RTN | {"group": 128}]), Grid.OFF)),
    ],
)
def test_what_differs_in_kind_is_measured(one: Candidate, other: Candidate) -> None:
    assert not gentler(one, other) and not gentler(other, one)


def test_only_the_gentlest_of_every_kind_decides() -> None:
    fitting = [predicted(one) for one in space(3774)[1:]]  # all but the uncompressed model
    found = deciding(fitting)
    labels = {one.candidate.label for one in fitting if one.candidate.key in found}
    assert "kivi(bits=8)" in labels and "kivi(bits=4)" not in labels and "kivi(bits=2)" not in labels
    assert "rtn(skip=['layers.*'], embedding_bits=4)" in labels
    assert {"snapkv(capacity=1856)", "streaming(window=1856)", "h2o(capacity=1856)"} <= labels
    assert {"headkv(capacity=1856)", "kvzip(keep=0.5)", "kvmerger(keep=0.5)", "fastgen(recovery=0.95)"} <= labels
    assert len(labels) < 25
    for one in fitting:
        assert (one.candidate.key in found) != any(gentler(other.candidate, one.candidate) for other in fitting)
    assert deciding([*fitting, predicted(space(3774)[0])]) == {space(3774)[0].key}


def test_under_a_latency_a_gentler_one_counts_where_it_is_surely_quick() -> None:
    slow, fast = predicted(of(KIVI), 0.9), predicted(of(SNAPKV, KIVI), 0.5)
    assert deciding([slow, fast]) == {slow.candidate.key}
    assert deciding([slow, fast], latency=1.0) == {slow.candidate.key, fast.candidate.key}
    assert deciding([slow, fast], latency=1.8) == {slow.candidate.key}
