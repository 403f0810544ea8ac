"""Whatever happens to requests with prompt programs, bytes are counted right and nobody else is harmed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.test_random_operations import check

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.drafting.model import EngineDraftModel
from thrifty.engine.engine import Engine
from thrifty.engine.prompt.programs import gemfilter
from thrifty.engine.request import Handle, Request
from thrifty.errors import BudgetError, PromptError, QueueFullError, ThriftyError
from thrifty.models.model import Model

SPECKV = {"technique": "speckv", "draft": "small", "capacity": 60, "window": 8, "lookahead": 6}
SPECPC = {"technique": "specpc", "draft": "small", "capacity": 90, "window": 16, "first_layer": 0}
GEMFILTER = {"technique": "gemfilter", "capacity": 80}
PROGRAMS: tuple[list[dict[str, Any]], ...] = ([], [GEMFILTER], [SPECPC], [SPECKV], [SPECPC, SPECKV])
CACHES: tuple[list[dict[str, Any]], ...] = ([], [], [{"technique": "kivi", "bits": 4, "residual": 32}])
OPERATIONS = 160


@pytest.fixture(scope="module")
def small() -> Model:
    return tiny_model(packed=True, seed=1, layers=2)


@pytest.fixture
def make(make_engine: MakeEngine, packed: Model, small: Model) -> Any:
    def engine(**options: Any) -> Engine:
        return make_engine(packed, drafts=("small",), load_draft=lambda name, fits: small, **options)

    return engine


def random_request(chance: random.Random) -> Request:
    sampling = SamplingParameters(
        max_tokens=chance.choice((1, 20, 90)), temperature=chance.choice((0.0, 1.0)), seed=3, ignore_eos=True
    )
    return Request(
        prompt=text_tokens(chance.choice((40, 130, 260)), chance.randint(0, 2)),
        sampling=sampling,
        samples=chance.choice((1, 1, 3)),
        programs=chance.choice(PROGRAMS),
        cache=chance.choice(CACHES),
        share_prefix=chance.random() < 0.7,
    )


@pytest.mark.parametrize("seed", [1, pytest.param(4, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long)])
def test_random_operations_keep_the_books_in_order(make: Any, packed: Model, seed: int) -> None:
    chance = random.Random(seed)
    free = make(batch=8)
    for programs in PROGRAMS:
        free.submit(Request(prompt=text_tokens(260), programs=programs, sampling=SamplingParameters(max_tokens=1)))
    drafts = free.memory.drafts.nbytes
    room = drafts + free.memory.footprint((), 260, 350, 3).peak_bytes + 1_000_000
    engine = make(
        batch=8, queue=6, memory=packed.nbytes + free.memory.workspace + room, prefill_slice_ms=1e-6
    )  # a layer a step: no clock decides
    handles: list[Handle] = []
    ended = 0
    for _ in range(OPERATIONS):
        action = chance.choices(("submit", "step", "cancel", "park"), (3, 20, 1, 1))[0]
        try:
            if action == "submit":
                handles.append(engine.submit(random_request(chance)))
            elif action == "step":
                engine.step()
            elif action == "cancel" and handles:
                chance.choice(handles).cancel()
            elif action == "park":
                with engine._turn:
                    engine._scheduler.park_youngest()
        except (BudgetError, QueueFullError):
            ended += 1
        check(engine)
    for handle in handles:
        handle.result()
        assert handle.error is None
        check(engine)
    assert engine.memory.ledger.bytes_of("draft") == engine.memory.drafts.nbytes
    assert all(draft.held == 0 for draft in engine.memory.drafts._models.values())
    assert sum(handle.usage.kept_tokens < handle.usage.prompt_tokens for handle in handles) >= 5


@pytest.mark.parametrize("programs", PROGRAMS[1:4])
def test_an_error_in_a_program_ends_its_request_alone(
    make: Any, programs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(prefill_slice_ms=1e-6)
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True)
    request = Request(prompt=text_tokens(300), sampling=sampling, programs=programs)
    wanted = engine.submit(request).result().token_ids
    chat = engine.submit(Request(prompt=text_tokens(30), sampling=sampling))
    plain = make().submit(Request(prompt=text_tokens(30), sampling=sampling)).result().token_ids
    while not chat.samples[0].token_ids:
        engine.step()

    def failing(*arguments: Any, **options: Any) -> Any:
        raise ThriftyError("broken in the middle")

    before = engine.memory.ledger.bytes_of("draft")
    with monkeypatch.context() as patch:
        for owner, name in ((gemfilter, "last_query_scores"), (EngineDraftModel, "run")):
            patch.setattr(owner, name, failing)
        patch.setattr("thrifty.engine.prompt.programs.specpc.weighted", failing)
        with pytest.raises(ThriftyError, match="broken in the middle"):
            engine.submit(request).result()
    assert engine.memory.ledger.bytes_of("draft") == before
    assert all(draft.held == 0 for draft in engine.memory.drafts._models.values())
    assert engine.memory.ledger.bytes_of("scratch") == 0
    assert chat.result().token_ids == plain
    assert engine.submit(request).result().token_ids == wanted


def test_a_bound_of_the_requests_own_counts_the_passes(make: Any) -> None:
    """`cache_bytes` holds at every moment, the program's pass included."""
    engine = make(prefix_tree=False)
    sampling = SamplingParameters(max_tokens=10, ignore_eos=True)
    prompt = text_tokens(1000)
    free = engine.submit(Request(prompt=prompt, sampling=sampling, programs=[GEMFILTER]))
    wanted = free.result().token_ids
    alone = engine.submit(Request(prompt=prompt[:80], sampling=sampling))
    alone.result()
    assert free.usage.kv_bytes > 2 * alone.usage.kv_bytes, "one layer of the whole prompt, and its hidden state"
    with pytest.raises(BudgetError, match=r"use cache_bytes = \d+ or more") as refused:
        engine.submit(Request(prompt=prompt, sampling=sampling, programs=[GEMFILTER], cache_bytes=alone.usage.kv_bytes))
    least = int(str(refused.value).split("use cache_bytes = ")[1].split(" ")[0])
    bounded = engine.submit(Request(prompt=prompt, sampling=sampling, programs=[GEMFILTER], cache_bytes=least))
    assert bounded.result().token_ids == wanted
    assert bounded.usage.kv_bytes <= least


def test_a_filtered_prompt_needs_less_than_a_whole_one(make: Any) -> None:
    """A budget in which the whole prompt has no room takes it with a program."""
    free = make(prefix_tree=False)
    request = {"prompt": text_tokens(3000), "sampling": SamplingParameters(max_tokens=10, ignore_eos=True)}
    wanted = free.submit(Request(**request, programs=[GEMFILTER])).result().token_ids
    base = free.memory.ledger.bytes_of("weights") + free.memory.workspace
    engine = make(prefix_tree=False, memory=base + free.memory.footprint((), 3000, 3010).peak_bytes // 2 + 1_600_000)
    with pytest.raises(BudgetError):
        engine.submit(Request(**request, programs=[]))
    assert engine.submit(Request(**request, programs=[GEMFILTER])).result().token_ids == wanted


def test_a_prompt_beyond_the_context_is_refused_whatever_reads_it(make: Any) -> None:
    with pytest.raises(PromptError, match="the prompt has 4096 tokens; the context holds 4096"):
        make().submit(Request(prompt=text_tokens(4096), programs=[GEMFILTER]))
