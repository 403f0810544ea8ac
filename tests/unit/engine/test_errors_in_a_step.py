"""A step is all or nothing: an error at any place ends at most one request, and nothing else is wrong afterwards."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.error_places import Places, wrap_all
from tests.unit.engine.test_drafts import Hints

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Handle, Request
from thrifty.errors import ThriftyError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

KINDS = (ValueError, MemoryError, KeyboardInterrupt)
KIVI = {"technique": "kivi", "bits": 4, "residual": 64}
SNAPKV = {"technique": "snapkv", "capacity": 64}
FOLLOWING = 9


def make_request(name: str, length: int, steps: int, **options: Any) -> Request:
    caches: dict[str, list[dict[str, Any]]] = {
        "kivi": [KIVI],
        "snapkv": [SNAPKV, KIVI],
        "h2o": [{"technique": "h2o", "capacity": 60}],
        "kvzip": [{"technique": "kvzip", "keep": 0.3, "chunk": 100}],
        "streaming": [{"technique": "streaming", "window": 64}],
    }
    outer = {key: options.pop(key) for key in ("samples", "decoding") if key in options}
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True, **options)
    return Request(prompt=text_tokens(length, length), sampling=sampling, cache=caches.get(name), **outer)


SCENES: dict[str, list[Callable[[], Request]]] = {
    "recipes": [
        functools.partial(make_request, "full", 130, 8, samples=2, temperature=1.0, seed=3),
        functools.partial(make_request, "kivi", 140, 60),
        functools.partial(make_request, "snapkv", 150, 20),
        functools.partial(make_request, "kvzip", 110, 10),
    ],
    "evicting": [
        functools.partial(make_request, "h2o", 100, 20),
        functools.partial(make_request, "streaming", 190, 80),
        functools.partial(make_request, "full", 65, 20, stop="\u0001\u0002"),
        functools.partial(make_request, "drafts", 90, 40, decoding=[{"technique": "drafts"}]),
    ],
    "parking": [
        functools.partial(make_request, "full", 60, 75),
        functools.partial(make_request, "kivi", 70, 130),
        functools.partial(make_request, "full", 63, 70),
    ],
}
"""Batches whose sequences are all under way at once. "drafts" takes a strategy that drafts."""
ROOM = {"recipes": 1.3, "evicting": 1.6, "parking": 1.3}
"""Of the largest request's peak, so much memory: pages move to disk, and in the last scene a sequence is parked."""


@dataclass
class Played:
    """What came of a scene. raised: errors that calls into the engine raised. notes: listeners' events."""

    engine: Engine
    handles: list[Handle | None] = field(default_factory=list)
    raised: list[BaseException] = field(default_factory=list)
    events: dict[int, list[Event | None]] = field(default_factory=dict)
    fork: Handle | None = None


@dataclass(frozen=True)
class Stage:
    """A model, a scene and its right answers."""

    model: Model
    scene: str
    expected: list[list[list[int]]]
    forked: list[int]
    following: list[int]
    budget: int | None

    def engine(self) -> Engine:
        engine = Engine(self.model, threads=1, prefill_slice_ms=0, memory=self.budget)
        strategy = engine.intake._strategy
        draft = self.expected[-1][0] if self.scene == "evicting" and self.expected else []
        hints = Hints(90, tuple(draft))
        engine.intake._strategy = lambda tables: hints if tables else strategy(None)  # type: ignore[method-assign]
        return engine

    def requests(self) -> list[Request]:
        """Those of the scene, and one that will be cancelled."""
        return [*(make() for make in SCENES[self.scene]), make_request("kvzip", 120, 50)]

    def play(self, engine: Engine, requests: list[Request], places: Places | None = None) -> Played:
        """All requests of the scene, a fork and a cancelled one, each step by step until nothing runs."""
        played = Played(engine)
        wrap = (lambda function: function) if places is None else places.wrapped
        cancelled: Handle | None = None
        for number, request in enumerate(requests[:-1]):
            taken: list[Event | None] = []
            played.events[number] = taken
            handle = self._call(played, played.engine.submit, request, wrap(taken.append) if number % 2 else None)
            played.handles.append(handle)
        steps = 0
        while played.engine.busy:
            self._call(played, played.engine.step)
            steps += 1
            assert steps < 2000, "a request never ends"
            first = played.handles[0]
            if played.fork is None and first is not None and len(first.samples[0].token_ids) == 4:
                played.fork = self._call(played, first.fork)
                cancelled = self._call(played, played.engine.submit, requests[-1])
            if cancelled is not None and cancelled.usage.generated_tokens > 3:
                self._call(played, cancelled.cancel)
                cancelled = None
        return played

    @staticmethod
    def _call(played: Played, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException as error:
            played.raised.append(error)
            return None


@functools.lru_cache
def stage(scene: str) -> Stage:
    model = tiny_model(packed=True, layers=3)
    bare = Stage(model, scene, [], [], [], None)
    expected = []
    for make in SCENES[scene]:
        engine = bare.engine()
        expected.append([sample.token_ids for sample in engine.submit(make()).result().samples])
        engine.close()
    forked = bare.play(bare.engine(), bare.requests()).fork
    following = bare.engine().submit(make_request("full", 77, FOLLOWING)).result().token_ids
    engine = bare.engine()
    peaks = [
        engine.memory.footprint(
            engine.intake.check(request).policies,
            len(request.prompt),
            engine.intake.check(request).maximum_tokens + len(request.prompt),
            request.samples,
        ).peak_bytes
        for request in bare.requests()
    ]
    budget = model.nbytes + engine.memory.workspace + int(ROOM[scene] * max(peaks))
    return Stage(model, scene, expected, forked.result().token_ids if forked else [], following, budget)


def check(stage: Stage, played: Played, places: Places) -> None:
    """What must hold whatever was raised wherever."""
    culprits = 0
    answers = list(zip(played.handles, stage.expected, strict=True))
    if played.fork is not None and stage.forked:
        answers.append((played.fork, [stage.forked]))
    for number, (handle, expected) in enumerate(answers):
        if handle is None:
            continue
        assert handle.finished
        found = [sample.token_ids for sample in handle.samples]
        if handle.error is None:
            assert found == expected, f"request {number} after {places.place}"
        else:
            culprits += 1
            assert all(own == right[: len(own)] for own, right in zip(found, expected, strict=True))
            _check_error(handle.error, places)
    assert culprits + len(played.raised) <= 2 and culprits <= 1
    for error in played.raised:
        assert error is places.error
    if isinstance(places.error, KeyboardInterrupt):
        assert played.raised, "an interrupt reaches who called"
    _check_memory(stage, played.engine)
    engine = played.engine
    assert engine.submit(make_request("full", 77, FOLLOWING)).result().token_ids == stage.following
    _check_memory(stage, engine)


def _check_error(error: Exception, places: Places) -> None:
    if isinstance(places.error, Exception):
        assert error is places.error
    else:
        assert isinstance(error, ThriftyError) and error.__cause__ is places.error
        assert "was ended by KeyboardInterrupt in the middle of a step" in str(error)


def _check_memory(stage: Stage, engine: Engine) -> None:
    """Nothing is left but weights, workspace and, on closing, weights."""
    cache, ledger = engine.memory.cache, engine.memory.ledger
    assert engine.describe()["queues"] == {"waiting": 0, "active": 0, "parked": 0}
    assert cache.tree is not None and cache.tiers.disk is not None
    cache.tree.clear()
    held = {name: one["current"] for name, one in ledger.categories().items() if one["current"]}
    assert held.keys() <= {"weights", "workspace"}, held
    assert held["workspace"] == engine.memory.workspace
    assert engine.memory._rows == 0
    assert (cache.tiers.arena.used, cache.tiers.disk.used, ledger.committed) == (0, 0, ledger.current)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    found = Places()
    for scene in SCENES:
        stage(scene)  # first: what it plays is not counted
    wrap_all(found, monkeypatch)
    return found


def play_with(places: Places, stage: Stage, kind: type[BaseException], at: int, after: bool = False) -> None:
    """Play a scene with an error at one place, and check."""
    engine, requests = stage.engine(), stage.requests()
    with places.armed(kind, at, after=after):
        played = stage.play(engine, requests, places)
    try:
        check(stage, played, places)
    finally:
        engine.close()


def count(places: Places, stage: Stage) -> int:
    """The places of a scene, and that it is right without an error."""
    play_with(places, stage, ValueError, 0)
    return places.calls


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES)
def test_an_error_at_any_place_harms_one_request_at_most(places: Places, scene: str) -> None:
    """A few places, others with every scene. The slow test beside it takes them all."""
    chance = random.Random(scene)
    calls = count(places, stage(scene))
    for turn in range(6):
        play_with(places, stage(scene), KINDS[turn % 3], chance.randrange(1, calls), after=turn >= 3)


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["decode", "_prepare", "_run", "first_choices"])
def test_an_error_in_what_all_sequences_of_a_step_share_loses_no_token(places: Places, name: str, after: bool) -> None:
    """Also where rows were committed by then."""
    places.names = frozenset((name,))
    calls = count(places, stage("evicting"))
    for turn, kind in enumerate(KINDS):
        play_with(places, stage("evicting"), kind, 1 + (turn + 1) * (calls - 1) // 4, after)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", SCENES)
def test_an_error_at_every_place(places: Places, scene: str, kind: type[BaseException], after: bool) -> None:
    """Every STRIDE-th place (default 40: some minutes a case); all of them in some hours:

    STRIDE=1 python -m pytest -m slow tests/unit/engine/test_errors_in_a_step.py
    """
    stride = int(os.environ.get("STRIDE", "40"))
    for at in range(1, count(places, stage(scene)) + 1, stride):
        play_with(places, stage(scene), kind, at, after)
