"""Who meets an error in a step: its own request ends with it, in batches of every size, and the books are right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from tests.tiny import ByteStream, text_tokens

from thrifty.cache.policies.h2o import H2o
from thrifty.cache.policies.kvzip import Kvzip
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.segment import Segment
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.stopping import Stopper
from thrifty.decoding.strategies.autoregressive import Autoregressive
from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.answer import Answer
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.engine.running import Running
from thrifty.errors import BudgetError, ThriftyError
from thrifty.models.model import Model
from thrifty.storage.arena import Arena
from thrifty.storage.ledger import Ledger, Reservation
from thrifty.storage.mapping import Mapping

KVZIP: list[dict[str, Any]] = [{"technique": "kvzip", "keep": 0.5}]
CACHES = {"full": None, "kvzip": KVZIP}
H2O_60: list[dict[str, Any]] = [{"technique": "h2o", "capacity": 60}]


def request(number: int, **options: Any) -> Request:
    outer = {name: options.pop(name) for name in ("cache", "samples") if name in options}
    sampling = SamplingParameters(**({"max_tokens": 12, "ignore_eos": True} | options))
    return Request(prompt=text_tokens(60 + number, number), sampling=sampling, **outer)


class Fault:
    """Makes a method raise where `when(object, *arguments)` says so, from the `after`-th such call on, `times`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: BaseException, times: int = 1
    ) -> None:
        self.error, self.left, self.after = error, times, 0
        self.when: Callable[..., bool] = lambda *_: True
        original = getattr(owner, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            if self.left and self.when(*arguments):
                self.after -= 1
                if self.after < 0:
                    self.left -= 1
                    raise self.error
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, failing)


def settled(engine: Engine) -> None:
    """Nothing runs, and no byte is left but weights and workspace."""
    assert engine.describe()["queues"] == {"waiting": 0, "active": 0, "parked": 0}
    tree, ledger = engine.memory.cache.tree, engine.memory.ledger
    assert tree is not None
    tree.clear()
    assert [ledger.bytes_of(name) for name in ("cache", "tree", "scratch", "index")] == [0] * 4
    assert ledger.committed == ledger.current
    assert engine.memory.cache.tiers.arena.used == 0


OWN_PLACES: list[tuple[type, str]] = [
    (Sampler, "commit"), (Stopper, "push"), (ByteStream, "push"), (Running, "advance"), (SequenceCache, "commit"),
    (SequenceCache, "remember"), (SequenceCache, "reserve"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [ValueError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(("owner", "name"), OWN_PLACES, ids=lambda value: str(value))
def test_what_fails_for_one_ends_that_one(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, kind: type[BaseException]
) -> None:
    error = kind("own")
    alone = [make_engine(packed).submit(request(number)).result().token_ids for number in range(3)]
    engine = make_engine(packed)
    handles = [engine.submit(request(number)) for number in range(3)]
    while handles[2].usage.generated_tokens < 3:
        engine.step()
    fault, raised = Fault(monkeypatch, owner, name, error), 0
    while engine.busy:
        try:
            engine.step()
        except KeyboardInterrupt:
            raised += 1
    assert fault.left == 0
    failed = [handle for handle in handles if handle.error is not None]
    assert len(failed) == 1 and failed[0].samples[0].finish_reason == "error"
    told = failed[0].error
    assert told is error or (isinstance(told, ThriftyError) and told.__cause__ is error)
    assert raised == isinstance(error, KeyboardInterrupt)
    for handle, expected in zip(handles, alone, strict=True):
        found = handle.samples[0].token_ids
        assert found == (expected if handle.error is None else expected[: len(found)])
    settled(engine)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["propose", "accept"])
def test_a_strategy_that_fails_for_all_is_asked_for_each(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[BaseException]
) -> None:
    alone = [make_engine(packed).submit(request(number)).result().token_ids for number in range(3)]
    engine = make_engine(packed)
    engine._stepper.ahead = None  # native code alone would ask no strategy
    handles = [engine.submit(request(number)) for number in range(3)]
    while handles[2].usage.generated_tokens < 3:
        engine.step()
    culprit = handles[1].identity
    fault = Fault(monkeypatch, Autoregressive, name, kind("shared"), times=1000)
    fault.when = lambda _, batch, *more: any(one.continuation.answer.identity == culprit for one in batch)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert [handle.result().token_ids for handle in (handles[0], handles[2])] == [alone[0], alone[2]]
    assert handles[1].samples[0].finish_reason == "error"
    settled(engine)


def test_a_stopper_that_fails_over_held_back_text(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(packed)
    handle, other = engine.submit(request(0, samples=2)), engine.submit(request(1))
    engine.step()
    fault = Fault(monkeypatch, Stopper, "flush", ValueError("flush"))
    handle.cancel()
    assert [sample.finish_reason for sample in handle.samples].count("error") >= 1
    assert handle.finished and handle.error is fault.error
    assert len(other.result().token_ids) == 12
    settled(engine)


FREEING: list[tuple[type, str, dict[str, tuple[int, ...]]]] = [
    (Mapping, "give_back", {"full": (0, 1), "kvzip": (0, 1)}),
    (Arena, "free", {"full": (0,), "kvzip": (0, 1, 3)}),
    (Ledger, "credit", {"full": (0, 1), "kvzip": (0, 1, 3)}),
    (Segment, "release", {"full": (0,), "kvzip": (0, 1, 3)}),
    (Cache, "release", {"full": (0,), "kvzip": (0,)}),
    (EngineMemory, "release", {"full": (0,), "kvzip": (0,)}),
    (SequenceCache, "free", {"full": (0,), "kvzip": (0,)}),
]
"""What freeing calls, and which of these calls fails, by what the cache holds: the other calls there are not made."""
HALF_WAY = [
    pytest.param(owner, name, cache, after, id=f"{owner.__name__}.{name}-{cache}-{after}")
    for owner, name, calls in FREEING
    for cache, places in calls.items()
    for after in places
]


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(("owner", "name", "cache", "after"), HALF_WAY)
def test_freeing_that_stops_half_way_frees_the_rest(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch,
    owner: type, name: str, cache: str, after: int, kind: type[BaseException],
) -> None:  # fmt: skip
    engine = make_engine(packed, prefill_slice_ms=0)
    alone = make_engine(packed).submit(request(1)).result().token_ids
    handle, other = engine.submit(request(0, cache=CACHES[cache])), engine.submit(request(1))
    for _ in range(2 + after):  # under kvzip in the middle of its rehearsals
        engine.step()
    fault = Fault(monkeypatch, owner, name, kind("free"))
    fault.after = after
    try:
        handle.cancel()
    except KeyboardInterrupt:
        assert kind is KeyboardInterrupt
    handle.cancel()
    assert handle.samples[0].finish_reason == "cancelled" and handle.error is None
    assert fault.left == 0, "nothing was raised"
    assert other.result().token_ids == alone
    settled(engine)
    assert engine.submit(request(1)).result().token_ids == alone
    settled(engine)


@pytest.mark.parametrize("name", ["admit", "restore", "cover", "park"])
def test_a_sequence_that_memory_fails_ends_alone(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An error beside a lack of room, such as a disk that cannot be read: it used to stop every later step."""
    alone = make_engine(packed).submit(request(0)).result().token_ids
    engine = make_engine(packed)
    handles = [engine.submit(request(number)) for number in range(2)]
    if name != "admit":
        while handles[1].usage.generated_tokens < 2:
            engine.step()
    if name == "restore":
        assert engine._scheduler.park_youngest() is not None
    fault = Fault(monkeypatch, EngineMemory, name, OSError(5, "the disk is gone"), times=1000)
    fault.when = lambda _, sequence, *more: sequence.answer is handles[1].answer
    if name == "park":
        engine._scheduler.park_youngest()
    assert handles[0].result().token_ids == alone
    with pytest.raises(OSError, match="the disk is gone"):
        handles[1].result()
    settled(engine)


def test_what_is_no_requests_error_is_raised_and_nothing_is_lost(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(packed)
    alone = make_engine(packed).submit(request(0)).result().token_ids
    handle = engine.submit(request(0))
    engine.step()
    Fault(monkeypatch, type(engine._scheduler), "schedule", MemoryError("nobody's"))
    with pytest.raises(MemoryError, match="nobody's"):
        engine.step()
    assert handle.result().token_ids == alone
    settled(engine)


@pytest.mark.parametrize(("policy", "name", "cache"), [(H2o, "after_decode", H2O_60), (Kvzip, "after_prompt", KVZIP)])
def test_a_policy_that_fails_in_a_batch(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, policy: type, name: str, cache: Any
) -> None:
    alone = make_engine(packed).submit(request(1)).result().token_ids
    engine = make_engine(packed)
    Fault(monkeypatch, policy, name, ArithmeticError("a policy's bug"))
    bad, good = engine.submit(request(0, cache=cache, max_tokens=90)), engine.submit(request(1))
    assert good.result().token_ids == alone
    with pytest.raises(ArithmeticError, match="a policy's bug"):
        bad.result()
    settled(engine)


def test_a_fork_that_fails_changes_nothing(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    engine, other = make_engine(packed), make_engine(packed)
    forks = []
    for one in (engine, other):
        handle = one.submit(request(0, **options))
        while handle.usage.generated_tokens < 3:
            one.step()
        if one is engine:
            Fault(monkeypatch, SequenceCache, "fork", BudgetError("no room"))
            with pytest.raises(BudgetError, match="no room"):
                handle.fork()
        forks.append((handle.fork().result().token_ids, handle.result().token_ids))
    assert forks[0] == forks[1]
    settled(engine)


@pytest.mark.parametrize("error", [MemoryError("a row"), KeyboardInterrupt("a row")], ids=repr)
def test_rows_that_fail_after_they_ran_in_a_batch(packed: Model, make_engine: Any, error: BaseException) -> None:
    """The batch is undone and each runs alone: rows that are in the caches already do not stay."""
    alone = [make_engine(packed).submit(request(number)).result().token_ids for number in range(3)]
    engine = make_engine(packed)
    engine._stepper.ahead = None  # all rows go through Runner.decode
    handles = [engine.submit(request(number)) for number in range(3)]
    while handles[2].usage.generated_tokens < 3:
        engine.step()
    culprit, run = engine.cache_of(handles[1]), engine.runner.decode

    def decode(batch: Any) -> Any:
        scores = run(batch)
        if any(rows.cache is culprit for rows in batch):
            raise error
        return scores

    engine.runner.decode = decode
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert [handle.result().token_ids for handle in (handles[0], handles[2])] == [alone[0], alone[2]]
    assert handles[1].samples[0].finish_reason == "error"
    settled(engine)


def test_a_sample_whose_first_token_fails_ends_alone(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 3, "temperature": 1.0, "seed": 3}
    expected = make_engine(packed).submit(request(0, **options)).result().samples
    engine = make_engine(packed)
    fault = Fault(monkeypatch, Sampler, "choose", ValueError("the first token"))
    fault.when = lambda sampler, *_: sampler.stream == 1
    handle, other = engine.submit(request(0, **options)), engine.submit(request(1))
    assert len(other.result().token_ids) == 12
    with pytest.raises(ValueError, match="the first token"):
        handle.result()
    assert [sample.finish_reason for sample in handle.samples] == ["length", "error", "length"]
    assert [handle.samples[place].token_ids for place in (0, 2)] == [expected[0].token_ids, expected[2].token_ids]
    settled(engine)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_samples_that_cannot_all_be_forked_end_together(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    engine = make_engine(packed)
    fault = Fault(monkeypatch, SequenceCache, "fork", MemoryError("a fork"))
    fault.after = after
    handle, other = engine.submit(request(0, samples=4, temperature=1.0)), engine.submit(request(1))
    with pytest.raises(MemoryError, match="a fork"):
        handle.result()
    assert [sample.finish_reason for sample in handle.samples] == ["error"] * 4
    assert [sample.token_ids for sample in handle.samples] == [[]] * 4
    assert len(other.result().token_ids) == 12
    settled(engine)


def test_an_event_that_cannot_be_recorded_ends_its_request(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_engine(packed).submit(request(1)).result().token_ids
    engine = make_engine(packed)
    handle, other = engine.submit(request(0)), engine.submit(request(1))
    while other.usage.generated_tokens < 3:
        engine.step()
    Fault(monkeypatch, Answer, "record", MemoryError("an event")).when = lambda answer, _: answer is handle.answer
    assert other.result().token_ids == alone
    with pytest.raises(MemoryError, match="an event"):
        handle.result()
    settled(engine)


@pytest.mark.parametrize("error", [MemoryError("closing"), KeyboardInterrupt("closing")], ids=repr)
@pytest.mark.parametrize(("owner", "name"), [(Segment, "release"), (Ledger, "credit"), (Mapping, "give_back")])
def test_an_engine_that_is_disturbed_while_it_closes_is_closed(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: BaseException
) -> None:
    engine = make_engine(packed)
    engine.submit(request(100)).result()  # leaves a page in the prefix tree
    Fault(monkeypatch, owner, name, error)
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else nullcontext():
        engine.close()
    assert engine.memory.ledger.current == engine.memory.ledger.bytes_of("weights")
    assert engine.memory.cache.tiers.arena.used == 0


def test_a_promise_ends_with_its_sequence(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where ending it fails once, and what it charged lives on in a fork."""
    engine = make_engine(packed)
    sampling = SamplingParameters(max_tokens=12, ignore_eos=True)
    handle = engine.submit(Request(prompt=text_tokens(150, 0), sampling=sampling, share_prefix=False))
    while len(handle.samples[0].token_ids) < 3:
        engine.step()
    child = handle.fork()
    fault = Fault(monkeypatch, Reservation, "release", ValueError("in the middle"))
    handle.cancel()
    assert fault.left == 0
    ledger, cache = engine.memory.ledger, engine.cache_of(child)
    assert cache is not None and ledger._reservations == {cache.reservation}
    child.result()
    settled(engine)
