"""What callers may give an engine, and when: wrong values are refused by name, and a closed engine takes no work."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import random_adapter, submit

from thrifty import registry
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.media import Embeddings
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, CheckpointError, PromptError, ThriftyError
from thrifty.models.adapters import Adapter
from thrifty.models.model import Model

FULL = registry.build("cache", {"technique": "full"})


def placed(*positions: int) -> Embeddings:
    return Embeddings(np.ones((len(positions), 128), np.float32), positions=list(positions))


def charge_of(make_engine: MakeEngine, model: Model, adapter: Adapter) -> int:
    """Bytes that an engine's ledger holds for it."""
    return make_engine(model, adapters={"a": adapter}).memory.ledger.bytes_of("adapters")


def test_positions_stay_inside_the_context(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, context=128)
    prompt = [1, placed(0, 99), 3]  # the last row's position is 101
    assert len(submit(engine, prompt, tokens=26).result().token_ids) == 26
    with pytest.raises(PromptError, match="max_tokens = 27 .* use at most 26"):
        submit(engine, prompt, tokens=27)
    assert submit(engine, [1, placed(125)], tokens=1).result().token_ids
    with pytest.raises(PromptError, match="positions go up to 127; the context holds 128.*use positions up to 126"):
        submit(engine, [1, placed(126)], tokens=1)
    with pytest.raises(PromptError, match="use positions up to 126"):
        submit(engine, [1, placed(2**31 - 3), 3], tokens=1)
    with pytest.raises(PromptError, match="integers of 32 bits"):
        submit(engine, [1, placed(2**31 - 1), placed(2**31 - 1)], tokens=1)
    late = Request(prompt=[1, placed(119)])
    assert engine.intake.check(late).maximum_tokens == 128 - 121


def test_a_fork_stays_inside_the_context(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, context=128)
    handle = submit(engine, [1, placed(0, 99), 3], tokens=26)
    while handle.usage.generated_tokens < 6:
        engine.step()
    with pytest.raises(PromptError, match="use at most 20"):
        handle.fork(forced=[5], free=20)
    assert len(handle.fork(forced=[5], free=19).result().token_ids) == 20


@pytest.mark.parametrize("name", ["cache", "decoding"])
@pytest.mark.parametrize("value", ["speculative", {"technique": "speculative"}, ["kivi"], 3])
def test_tables_that_are_none_are_refused(packed: Model, name: str, value: Any) -> None:
    with pytest.raises(PromptError, match=f"{name} = .* is no list of tables"):
        Request(prompt=[1], **{name: value})
    with pytest.raises(PromptError, match=f"{name} = .* is no list of tables"):
        Engine(packed, **{name: value})


@pytest.mark.parametrize("value", [["/tmp"], "abc", 5])
def test_adapters_are_a_mapping(packed: Model, value: Any) -> None:
    with pytest.raises(PromptError, match="adapters = .* is no mapping"):
        Engine(packed, adapters=value)


def test_what_is_no_adapter_is_refused(make_engine: MakeEngine, packed: Model) -> None:
    wrong: Any = 5
    with pytest.raises(PromptError, match="the adapter 'a' is 5"):
        make_engine(packed).add_adapter("a", wrong)


def test_what_is_no_request_and_no_chat_is_refused(make_engine: MakeEngine, packed: Model) -> None:
    wrong: Any = "x"
    engine = make_engine(packed)
    with pytest.raises(PromptError, match="the request is 'x'"):
        engine.submit(wrong)
    with pytest.raises(PromptError, match="messages = 'x' .* are no messages"):
        packed.encode_chat(wrong)

    async def ask() -> None:
        async with AsyncEngine(engine) as running:
            with pytest.raises(PromptError, match="the request is 'x'"):
                await running.submit(wrong)
            with pytest.raises(PromptError, match="are no messages"):
                await running.encode_chat(wrong)

    asyncio.run(ask())


def test_what_cannot_be_watched_is_refused(make_engine: MakeEngine, packed: Model) -> None:
    engine, none = make_engine(packed), None
    with pytest.raises(PromptError, match="policy = None is no cache policy"):
        engine.watch_prompt([1, 2], none)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="scored = -1 is out of range"):
        engine.watch_prompt([1, 2], FULL, scored=-1)


def test_a_closed_engine_takes_no_work(packed: Model) -> None:
    engine = Engine(packed)
    begun = engine.hidden_states(text_tokens(600, 1))
    next(begun)
    begun_later = engine.hidden_states(text_tokens(20, 1))
    engine.close()
    works: list[Any] = [
        lambda: engine.submit(Request(prompt=[1])),
        lambda: engine.add_adapter("a", random_adapter(packed, 4, 1)),
        lambda: engine.watch_prompt([1, 2], FULL),
        lambda: engine.hidden_states([1, 2]),
        lambda: next(begun_later),
        lambda: next(begun),
    ]
    for work in works:
        with pytest.raises(ThriftyError, match="the engine is closed"):
            work()
    ledger = engine.memory.ledger
    assert ledger.current == ledger.bytes_of("weights") and engine.adapters == ()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_adapter_never_ends_an_accepted_request(make_engine: MakeEngine, packed: Model, steps: int) -> None:
    free = make_engine(packed)
    bound = free.memory.footprint((), 300, 400).peak_bytes
    room = packed.nbytes + free.memory.workspace + bound
    adapter = random_adapter(packed, 4, 1)
    charge = charge_of(make_engine, packed, adapter)
    engine = make_engine(packed, memory=room + charge - 1, prefix_tree=False)
    handle = submit(engine, text_tokens(300, 1), tokens=100)
    for _ in range(steps):
        engine.step()
    if not steps:
        with pytest.raises(BudgetError, match="the adapter 'a' .*wait for the end of request"):
            engine.add_adapter("a", adapter)
        assert engine.adapters == () and not engine.memory.ledger.bytes_of("adapters")
    else:
        grown = submit(engine, text_tokens(10, 2), tokens=2)
        with pytest.raises(BudgetError, match="to an accepted request that may need"):
            engine.add_adapter("big", random_adapter(packed, 64, 1))
        assert grown.result().finish_reason == "length"
    assert len(handle.result().token_ids) == 100
    engine.add_adapter("a", adapter)
    assert engine.adapters == ("a",)


def test_an_adapter_that_leaves_room_is_taken_beside_requests(make_engine: MakeEngine, packed: Model) -> None:
    free, adapter = make_engine(packed), random_adapter(packed, 4, 1)
    room = packed.nbytes + free.memory.workspace + free.memory.footprint((), 300, 400).peak_bytes
    charge = charge_of(make_engine, packed, adapter)
    engine = make_engine(packed, memory=room + charge, prefix_tree=False)
    handles = [submit(engine, text_tokens(300, seed), tokens=100) for seed in range(3)]
    engine.add_adapter("a", adapter)
    assert [len(handle.result().token_ids) for handle in handles] == [100] * 3


def test_one_adapter_under_two_names_is_charged_once(make_engine: MakeEngine, packed: Model) -> None:
    adapter = random_adapter(packed, 4, 1)
    engine = make_engine(packed, adapters={"a": adapter, "b": adapter})
    ledger = engine.memory.ledger
    charge = charge_of(make_engine, packed, adapter)
    assert ledger.bytes_of("adapters") == engine.memory.adapters == charge
    handle = submit(engine, [1, 2], adapter="a")
    with pytest.raises(PromptError, match="1 sequences use the adapter 'a'"):
        engine.remove_adapter("a")
    engine.remove_adapter("b")
    assert ledger.bytes_of("adapters") == charge
    handle.result()
    engine.remove_adapter("a")
    assert ledger.bytes_of("adapters") == engine.memory.adapters == 0


def test_wrong_adapters_leave_the_ledger_alone(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    with pytest.raises(CheckpointError, match="is no directory"):
        engine.add_adapter("none", "/missing/folder")
    assert not engine.memory.ledger.bytes_of("adapters")
