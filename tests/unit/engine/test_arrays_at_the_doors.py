"""A caller's arrays after they were given: whatever becomes of them, answers and shared prefixes stay the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import answer, logits_of, random_adapter, submit

from thrifty.arrays import Floats
from thrifty.engine.media import Embeddings
from thrifty.engine.request import Request
from thrifty.engine.steering import steering_key
from thrifty.errors import PromptError
from thrifty.models.adapters import Adapter
from thrifty.models.model import Model

PROMPT = text_tokens(200, 5)


def rows(count: int = 130) -> Floats:
    return np.random.default_rng(1).standard_normal((count, 128)).astype(np.float32)


def test_a_steering_vector_changed_afterwards_changes_nothing(make_engine: MakeEngine, packed: Model) -> None:
    engine, vector, later = make_engine(packed), np.ones(128, np.float32), np.full(128, 20.0, np.float32)
    handle = submit(engine, PROMPT, steering={0: vector})
    engine.step()
    vector[:] = later
    assert np.array_equal(logits_of(handle), answer(make_engine(packed), PROMPT, steering={0: np.ones(128)}))
    other = submit(engine, PROMPT, steering={0: later})
    assert np.array_equal(logits_of(other), answer(make_engine(packed), PROMPT, steering={0: later}))
    assert other.usage.cached_tokens == 0


def test_steering_of_a_request_cannot_be_written_to() -> None:
    request: Any = Request(prompt=[1], steering={0: np.ones(8, np.float32)})
    key = steering_key(request.steering)
    with pytest.raises(ValueError, match="read-only"):
        request.steering[0][:] = 2
    with pytest.raises(TypeError):
        request.steering[1] = np.ones(8, np.float32)
    assert steering_key(request.steering) == key == steering_key({0: np.ones(8, np.float32)})
    assert steering_key(dataclasses.replace(request, prompt=[2]).steering) == key
    assert steering_key(Request(**vars(request)).steering) == key


@pytest.mark.parametrize("hashed", [False, True], ids=["new", "hashed before"])
def test_embeddings_changed_afterwards_change_nothing(make_engine: MakeEngine, packed: Model, hashed: bool) -> None:
    engine, values = make_engine(packed), rows()
    old, positions = values.copy(), np.arange(130)[::-1].copy()
    piece = Embeddings(values, positions=positions)
    if hashed:
        assert piece.identity
    handle = submit(engine, [piece, *PROMPT[:5]])
    values[:], positions[:] = 0.5 * old[::-1], 0
    wanted = answer(make_engine(packed), [Embeddings(old, positions=np.arange(130)[::-1]), *PROMPT[:5]])
    assert np.array_equal(logits_of(handle), wanted)
    prompt = [Embeddings(values.copy()), *PROMPT[:5]]
    other = submit(engine, prompt)
    assert np.array_equal(logits_of(other), answer(make_engine(packed), prompt))
    assert other.usage.cached_tokens == 0
    with pytest.raises(ValueError, match="read-only"):
        piece.values[:] = 0


def test_no_key_equals_a_hash_of_values() -> None:
    plain = Embeddings(rows(3))
    digest: Any = plain.identity
    others = [digest, *digest, digest[0][1]]
    assert all(Embeddings(rows(3), key=key).identity != digest for key in others)
    placed = Embeddings(rows(3), key="k", positions=[0, 0, 1])
    assert Embeddings(rows(3), key=placed.identity).identity != placed.identity
    assert Embeddings(rows(3)).identity == digest


def test_an_adapter_changed_afterwards_stays_what_it_was(make_engine: MakeEngine, packed: Model) -> None:
    adapter = random_adapter(packed, 4, 1)
    matrices = {name: (down.copy(), up.copy()) for name, (down, up) in adapter.weights.items()}
    mine = Adapter(matrices, scale=0.5)
    engine = make_engine(packed, adapters={"a": mine})
    for down, up in matrices.values():
        down[:], up[:] = 7, 7
    matrices.clear()
    assert np.array_equal(
        answer(engine, PROMPT, adapter="a"), answer(make_engine(packed, adapters={"a": adapter}), PROMPT, adapter="a")
    )
    assert mine.version == adapter.version and mine.nbytes == adapter.nbytes
    with pytest.raises(ValueError, match="read-only"):
        next(iter(mine.weights.values()))[0][:] = 0


@pytest.mark.parametrize("extra", [{}, {"adapter": "a"}])
def test_no_salt_finds_steered_rows(make_engine: MakeEngine, packed: Model, extra: dict[str, Any]) -> None:
    vectors = {0: np.full(128, 3.0, np.float32)}
    adapters = {"a": random_adapter(packed, 4, 1)}
    engine = make_engine(packed, adapters=adapters)
    answer(engine, PROMPT, steering=vectors, **extra)
    key = steering_key(vectors)
    for salt in (f"|steered {key}", key, f"|{key}", str(("", (), key))):
        other = submit(engine, PROMPT, salt=salt, **extra)
        logits_of(other)
        assert other.usage.cached_tokens == 0
    again = submit(engine, PROMPT, steering=vectors, **extra)
    logits_of(again)
    assert again.usage.cached_tokens == 192


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.full(128, 1e300), "no finite sum in fp32; use a shorter vector"),
        (np.full(128, 3e38, np.float32), "no finite sum in fp32"),
        ([[1.0], [1.0, 2.0]], r"use finite numbers \[hidden size\]"),
        ([1.0, np.nan], "use finite numbers"),
        ("abc", "use finite numbers"),
        (None, "use finite numbers"),
    ],
)
def test_steering_that_no_state_takes_is_refused(vector: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Request(prompt=[1], steering={0: vector})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": np.full((3, 128), 3e38, np.float32)}, "no finite sum in fp32"),
        ({"positions": [[1, 2], [1]]}, "positions is .*use integers of 32 bits"),
        ({"ahead": [[1, 2], [1]]}, "ahead is .*use integers of 32 bits"),
        ({"positions": [0, 1, -(2**63)]}, "use integers of 32 bits"),
        ({"positions": [0, 1, 10**30]}, "use integers of 32 bits"),
        ({"positions": [0, 1, 2**31]}, "use integers of 32 bits"),
        ({"positions": "abc"}, "use integers of 32 bits"),
    ],
)
def test_pieces_of_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Embeddings(**({"values": rows(3)} | options))
