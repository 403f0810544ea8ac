"""Lookahead in the engine: answers of plain decoding to the token, nothing left behind, and who shares outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategies.lookahead_pain import TrieDrafter
from thrifty.decoding.trie import OutputTrie
from thrifty.engine.drafting.shelf import KEPT, KEPT_BYTES
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.models.model import Model

CACHES: list[list[dict[str, Any]]] = [
    [],
    [{"technique": "kivi", "bits": 2}],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "streaming", "window": 60}],
    [{"technique": "h2o", "capacity": 60}],
    [{"technique": "minikv", "residual": 64}],
    [{"technique": "quest", "budget": 192}],
]
LOOKAHEAD: list[dict[str, Any]] = [{"technique": "lookahead-pain", "branch_length": 6}]
LOOKUP = [{"technique": "prompt-lookup"}]
SPECULATIVE = [{"technique": "speculative", "draft": "small"}]
OWN_LAYERS = [{"technique": "speculative", "draft": "layers:0-1", "length": 2}]
Make = Callable[..., Engine]


def request(number: int = 0, tokens: int = 70, **options: Any) -> Request:
    """A prompt in which pieces come again, each time with other ends."""
    base = text_tokens(24, number)
    outer = {
        name: options.pop(name)
        for name in ("cache", "decoding", "salt", "share_prefix", "samples", "adapter")
        if name in options
    }
    sampling = SamplingParameters(**({"max_tokens": tokens, "ignore_eos": True} | options))
    return Request(prompt=[*base, 40, *base[:12], 41, *base, 42, *base[6:20]], sampling=sampling, **outer)


@pytest.fixture
def make(make_engine: MakeEngine, plain: Model) -> Make:
    def made(model: Model, **options: Any) -> Engine:
        return make_engine(
            model, drafts=("small", "layers:0-1"), load_draft=lambda name, fits: {"small": plain}[name], **options
        )

    return made


def steps_of(engine: Engine, asked: Request) -> tuple[list[int], int]:
    handle, steps = engine.submit(asked), 0
    while not handle.finished:
        engine.step()
        steps += 1
    return handle.result().token_ids, steps


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache[0]["technique"] if cache else "full")
def test_answers_are_those_of_plain_decoding(
    packed: Model, make: Make, cache: list[dict[str, Any]], temperature: float
) -> None:
    """Twice: the second time the first answer is known, and every token of it is drafted."""
    sampled = {"temperature": temperature, "seed": 3}
    plain, _ = steps_of(make(packed), request(cache=cache, **sampled))
    engine = make(packed)
    ends = [place for place, token in enumerate(plain) if token in engine.intake.end_ids]
    known = min([*ends, len(plain)])  # nothing is learned behind an end token
    for most in (74, 74 - known // 2):
        found, steps = steps_of(engine, request(cache=cache, decoding=LOOKAHEAD, **sampled))
        assert found == plain and steps <= most


@pytest.mark.parametrize("mode", ["hierarchical", "parallel", "one-branch"])
def test_every_mode_drafts_trees_or_lines_that_are_taken(packed: Model, make: Make, mode: str) -> None:
    engine = make(packed)
    plain, _ = steps_of(engine, request())
    decoding = [{**LOOKAHEAD[0], "mode": mode, "outputs": "own"}]
    assert steps_of(engine, request(decoding=decoding))[0] == plain
    steps_of(engine, request(decoding=LOOKAHEAD))
    found, steps = steps_of(engine, request(decoding=[{**LOOKAHEAD[0], "mode": mode}]))
    assert found == plain and steps < 35


def left(engine: Engine) -> dict[str, int]:
    """What the ledger holds by category, of what requests leave."""
    held = engine.usage().categories
    return {name: own.current for name, own in held.items() if name not in ("draft", KEPT)}


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache[0]["technique"] if cache else "full")
def test_what_was_rejected_leaves_no_trace_in_tree_statistics_and_ledger(
    packed: Model, make: Make, cache: list[dict[str, Any]]
) -> None:
    """After the same tokens of answer, the cache of a drafting sequence is that of a plain one."""
    engines = {name: make(packed) for name in ("plain", "drafted")}
    handles = {
        "plain": engines["plain"].submit(request(cache=cache)),
        "drafted": engines["drafted"].submit(request(cache=cache, decoding=LOOKAHEAD)),
    }
    compared, page = 0, engines["plain"].memory.footprint((), 1, 2).steady_bytes
    while not handles["drafted"].finished:
        engines["drafted"].step()
        done = handles["drafted"].usage.generated_tokens
        while handles["plain"].usage.generated_tokens < done:
            engines["plain"].step()
        pair = [engines[name].cache_of(handles[name]) for name in ("plain", "drafted")]
        if handles["plain"].usage.generated_tokens != done or pair[0] is None or pair[1] is None:
            continue
        compared += 1
        assert pair[0].length == pair[1].length
        for layer in range(len(packed.config.layers)):
            assert pair[0].counts(layer) == pair[1].counts(layer)
            stats = [own.stats(layer) for own in pair]
            for mine, other in zip(*(_arrays(own) for own in stats), strict=True):
                assert mine.shape == other.shape and (mine == other).all()
        held = [sum(segment.nbytes for segment in own.segments()) for own in pair]
        assert held[0] <= held[1] <= held[0] + page, "no more than the page that its drafts' rows had reached"
    assert compared > 5
    while not handles["plain"].finished:
        engines["plain"].step()
    assert handles["plain"].result().token_ids == handles["drafted"].result().token_ids
    assert left(engines["plain"]) == left(engines["drafted"])
    trees = [engine.memory.cache.tree for engine in engines.values()]
    assert len({None if tree is None else tree.nbytes for tree in trees}) == 1


def _arrays(stats: Any) -> list[Any]:
    return [value for _, value in sorted(vars(stats).items()) if hasattr(value, "shape")]


def test_a_batch_of_mixed_strategies_with_cancels_and_preemption(packed: Model, make: Make) -> None:
    ways = [[], LOOKAHEAD, LOOKUP, SPECULATIVE, OWN_LAYERS, LOOKAHEAD, SPECULATIVE, []]
    caches = [CACHES[place % 4] for place in range(len(ways))]
    plain = [steps_of(make(packed), request(at, cache=cache))[0] for at, cache in enumerate(caches)]
    engine = make(packed)
    handles = [
        engine.submit(request(at, cache=caches[at], decoding=way, temperature=0.0)) for at, way in enumerate(ways)
    ]
    cancelled = [engine.submit(request(20 + at, decoding=way)) for at, way in enumerate((LOOKAHEAD, SPECULATIVE))]
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
        if steps in (14, 22, 30):
            engine._scheduler.park_youngest()
        if steps == 18:
            cancelled[0].cancel()
        if steps == 26:
            cancelled[1].cancel()
    assert [handle.result().token_ids for handle in handles] == plain
    assert sum(handle.usage.preemptions for handle in [*handles, *cancelled]) >= 2
    tree, ledger = engine.memory.cache.tree, engine.memory.ledger
    assert tree is not None
    tree.clear()
    assert [ledger.bytes_of(name) for name in ("cache", "tree", "scratch", "index")] == [0] * 4
    assert (
        ledger.bytes_of("draft") == engine.memory.drafts.nbytes and ledger.bytes_of(KEPT) == engine.memory.kept.nbytes
    )


def drafted_by(engine: Engine, asked: Request) -> OutputTrie | None:
    """The kept outputs that a request's drafter has."""
    handle = engine.submit(asked)
    while handle.usage.generated_tokens < 4:
        engine.step()
    drafter = engine._scheduler.active[0].drafter
    assert isinstance(drafter, TrieDrafter)
    kept = drafter._kept
    handle.result()
    return kept


def test_outputs_are_shared_within_a_salt_and_by_nobody_who_does_not_share(packed: Model, make: Make) -> None:
    engine = make(packed)
    first = drafted_by(engine, request(decoding=LOOKAHEAD, salt="a"))
    assert first is not None and first.size > 0
    assert drafted_by(engine, request(decoding=LOOKAHEAD, salt="a")) is first
    other = drafted_by(engine, request(1, decoding=LOOKAHEAD, salt="b", tokens=10))
    assert other is not first and other is not None and 0 < other.size < first.size
    own = [{**LOOKAHEAD[0], "outputs": "own"}]
    size = first.size
    for asked in (request(2, decoding=own, salt="a"), request(2, decoding=LOOKAHEAD, salt="a", share_prefix=False)):
        assert drafted_by(engine, asked) is None
    assert first.size == size, "they add nothing"
    assert engine.memory.ledger.bytes_of(KEPT) == first.nbytes + other.nbytes == engine.memory.kept.nbytes
    engine.close()
    assert engine.memory.ledger.bytes_of(KEPT) == first.nbytes == 0


def test_kept_outputs_are_bounded_and_go_where_requests_need_memory(packed: Model, make: Make) -> None:
    engine = make(packed)
    big = [{**LOOKAHEAD[0], "nodes": 1 << 19}]
    tries = [drafted_by(engine, request(decoding=big, salt=salt, tokens=8)) for salt in "abc"]
    assert engine.memory.kept.nbytes <= KEPT_BYTES and tries[0] is not None and tries[0].nbytes == 0
    with pytest.raises(RecipeError, match="would keep .* use fewer nodes"):
        engine.submit(request(decoding=[{**LOOKAHEAD[0], "nodes": 1 << 20}]))
    free = make(packed)
    base = packed.nbytes + free.memory.workspace
    large = request(3, tokens=600, cache=[])
    need = free.memory.footprint((), len(large.prompt), len(large.prompt) + 600).peak_bytes
    tight = make(packed, memory=base + need, prefix_tree=False)
    small = [{**LOOKAHEAD[0], "nodes": need // 32, "decoding_length": 4}]
    kept = drafted_by(tight, request(decoding=small, tokens=8))
    assert kept is not None and tight.memory.ledger.bytes_of(KEPT) == kept.nbytes > 0
    assert steps_of(tight, large)[0] == steps_of(free, large)[0], "it fits as if nothing were kept"
    assert tight.memory.ledger.bytes_of(KEPT) == kept.nbytes == 0


def test_without_room_nothing_is_kept_and_answers_are_the_same(packed: Model, make: Make) -> None:
    free = make(packed)
    plain, _ = steps_of(free, request())
    asked = request(decoding=[{**LOOKAHEAD[0], "decoding_length": 4, "nodes": 1 << 19}])
    ticket = free.intake.check(asked)
    need = free.memory.footprint((), len(asked.prompt), len(asked.prompt) + 70, 1, ticket.drafting).peak_bytes
    tight = make(packed, memory=packed.nbytes + free.memory.workspace + need, prefix_tree=False)
    assert steps_of(tight, asked)[0] == plain
    assert tight.memory.ledger.bytes_of(KEPT) == 0


def test_an_error_in_the_books_is_mended(packed: Model, make: Make) -> None:
    engine = make(packed)
    drafted_by(engine, request(decoding=LOOKAHEAD))
    held = engine.memory.ledger.bytes_of(KEPT)
    engine.memory.ledger.charge(KEPT, 100)
    engine._publisher.sound = False
    steps_of(engine, request(1, tokens=5))
    assert engine.memory.ledger.bytes_of(KEPT) == held == engine.memory.kept.nbytes


def test_a_model_that_says_nan_ends_its_request_alone(make: Make) -> None:
    model = tiny_model()
    linear = model.linears["layers.1.mlp.down"]
    linear.state()["weight"][:] = float("nan")
    with pytest.raises(Exception, match="best logit is nan"):
        make(model).submit(request(decoding=LOOKAHEAD)).result()
