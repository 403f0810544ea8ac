"""A result does not depend on how its prompt lies in segments: on prefix hits, chunks, slices, forks, pauses, retries.

Every way to an answer is held against the request alone, with no prefix tree and its prompt in one piece: to the token,
and natively to the bit. Prompts end around every border of what a recipe keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.scored import score

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Handle, Request
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch
from thrifty.models.model import Model

Tables = Sequence[Mapping[str, Any]]

STEPS = 70  # a page border and a policy's period
TEXT = text_tokens(420, 99)
OPTIONS: dict[str, dict[str, Any]] = {
    "streaming": {"window": 100},
    "kivi": {"residual": 100},
    "snapkv": {"capacity": 130, "window": 16},
    "ada-kv": {"capacity": 110, "window": 16},
    "pyramidkv": {"capacity": 110, "window": 8},
    "headkv": {"capacity": 110, "window": 8},
    "headkv-r2": {"capacity": 110, "window": 8},
    "h2o": {"capacity": 120},
    "minikv": {"residual": 64},
    "fastgen": {"recovery": 0.7, "profile": 48},
    "kvmerger": {"keep": 0.6, "first": 0, "last": 0},
    "kvzip": {"keep": 0.4, "chunk": 100},
}
"""Options that make a technique act on prompts of a few pages."""
CHAINS = [
    *([name] for name in registry.names("cache")),
    ["streaming", "kivi"],
    ["snapkv", "kivi"],
    ["snapkv", "streaming"],
    ["streaming", "snapkv"],
    ["ada-kv", "kivi"],
    ["kvzip", "kivi"],
    ["streaming", "h2o"],
    ["snapkv", "h2o", "kivi"],
]
VARIANTS: dict[str, Tables] = {
    "no sinks": [{"technique": "streaming", "window": 100, "sinks": 0}],
    "more sinks than a page": [{"technique": "streaming", "window": 64, "sinks": 70}],
    "sinks at their true positions": [{"technique": "streaming", "window": 100, "renumber": False}],
    "a window beyond the prompt": [{"technique": "streaming", "window": 500}],
    "codes of everything": [{"technique": "kivi", "bits": 4, "residual": 0}],
    "codes of nothing": [{"technique": "kivi", "residual": 500}],
    "nothing evicted, then codes": [{"technique": "snapkv", "keep": 1.0}, {"technique": "kivi", "residual": 100}],
    "nothing forgotten, then codes": [{"technique": "kvzip", "keep": 1.0, "chunk": 90}, {"technique": "kivi"}],
}
RECIPES: dict[str, Tables] = {
    **{"+".join(names): [{"technique": name} | OPTIONS.get(name, {}) for name in names] for names in CHAINS},
    **VARIANTS,
}
NEVER_HIT = {"h2o", "minikv", "fastgen", "kvmerger"}
"""Techniques that want sums over the whole prompt's rows: the engine computes it all."""
PATHS = [
    pytest.param(True, id="native", marks=pytest.mark.skipif(dispatch.native() is None, reason="it is not built")),
    pytest.param(False, id="reference", marks=pytest.mark.slow),
]


def borders(tables: Tables) -> list[int]:
    """Lengths at which a recipe begins to act: what it keeps whole, without and with its sinks."""
    limits = [table[name] for table in tables for name in ("window", "capacity", "residual") if name in table]
    sinks = max((table.get("sinks", 4) for table in tables if table["technique"] == "streaming"), default=0)
    return sorted({limit + more for limit in limits for more in (0, sinks) if PAGE < limit + more < 300})


def few_lengths(tables: Tables) -> list[int]:
    """The last length that is kept whole, and a prompt that ends in the middle of a page."""
    return sorted({(borders(tables) or [2 * PAGE])[-1], 4 * PAGE - 20})


def all_lengths(tables: Tables) -> list[int]:
    """Around every border, the next page's, and those of the pages themselves."""
    own = borders(tables)
    every = {*own, *(border + PAGE for border in own), *range(PAGE, 6 * PAGE, PAGE)}
    return sorted({border + more for border in every for more in (-1, 0, 1)})


def request(recipe: str, length: int, steps: int = STEPS, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True)
    return Request(prompt=TEXT[:length], sampling=sampling, cache=RECIPES[recipe], logits=True, **options)


class Engines:
    """Engines over one model, each made when it is first asked for and used for every recipe."""

    def __init__(self, native: bool) -> None:
        self.native = native
        self._model = tiny_model(packed=native)
        score(self._model, "r")
        score(self._model, "r2")
        self._made: dict[str, Engine] = {}
        self._alone: dict[tuple[str, int], list[Event]] = {}
        self._filled: set[str] = set()

    def get(self, name: str, **options: Any) -> Engine:
        if name not in self._made:
            self._made[name] = Engine(self._model, native=self.native, **options)
        return self._made[name]

    def alone(self, recipe: str, length: int) -> list[Event]:
        """What every way must answer."""
        key = (recipe, length)
        if key not in self._alone:
            engine = self.get("alone", chunk=512, prefix_tree=False)
            self._alone[key] = list(engine.submit(request(recipe, length)))
        return self._alone[key]

    def same(self, handle: Handle, recipe: str, length: int, skip: int = 0) -> None:
        """Assert that a request goes on as the one alone does after `skip` tokens."""
        expected, events = self.alone(recipe, length)[skip:], list(handle)
        assert [event.token for event in events] == [event.token for event in expected], (recipe, length)
        if self.native:
            for event, other in zip(events, expected, strict=True):
                assert event.logits is not None and other.logits is not None
                assert np.array_equal(event.logits, other.logits), (recipe, length)

    def hit(self, recipe: str, length: int, pages: int, cache: Tables = ()) -> Handle:
        """A request whose tree holds so many pages of the text, and one of another: `cache` is what filled it."""
        engine, salt = self.get("tree", chunk=128), f"{pages} pages {cache}"
        if salt not in self._filled:
            self._filled.add(salt)
            prompt = TEXT[: pages * PAGE] + text_tokens(PAGE, 7)
            donor = Request(prompt=prompt, sampling=SamplingParameters(max_tokens=1), cache=cache, salt=salt)
            engine.submit(donor).result()
        return engine.submit(request(recipe, length, salt=salt))

    def close(self) -> None:
        for engine in self._made.values():
            engine.close()
            assert engine.memory.ledger.current == engine.memory.ledger.bytes_of("weights")


@pytest.fixture(scope="module", params=PATHS)
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFTY_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Engines(native=request.param)
        yield made
        made.close()


# --- prefix hits -------------------------------------------------------------------------------------


def check_hit(engines: Engines, recipe: str, length: int, pages: int) -> None:
    handle = engines.hit(recipe, length, pages)
    engines.same(handle, recipe, length)
    cached, most = handle.usage.cached_tokens, (length - 1) // PAGE * PAGE
    if NEVER_HIT & {table["technique"] for table in RECIPES[recipe]}:
        assert cached == 0
    else:
        least = min(pages * PAGE, most) - PAGE  # a page may be computed again for the queries that are wanted
        assert least <= cached <= most


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_prefix_hit_changes_nothing(engines: Engines, recipe: str) -> None:
    for length in few_lengths(RECIPES[recipe]):
        check_hit(engines, recipe, length, 6)


@pytest.fixture(scope="module")
def reference() -> Iterator[Engines]:
    engines = Engines(native=False)
    yield engines
    engines.close()


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["streaming+kivi", "snapkv+h2o+kivi"])
def test_a_prefix_hit_changes_nothing_on_the_reference(reference: Engines, recipe: str) -> None:
    """A sample; `slow` has them all."""
    check_hit(reference, recipe, few_lengths(RECIPES[recipe])[0], 6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_prefix_hit_changes_nothing_at_any_border(engines: Engines, recipe: str) -> None:
    for length in all_lengths(RECIPES[recipe]):
        for pages in (1, 2, 6):
            check_hit(engines, recipe, length, pages)


def test_a_request_that_compressed_leaves_nothing_that_others_find(engines: Engines) -> None:
    handle = engines.hit("full", 200, 3, RECIPES["streaming"])
    engines.same(handle, "full", 200)
    assert handle.usage.cached_tokens == 0


# --- other ways --------------------------------------------------------------------------------------


def in_small_chunks(engines: Engines, recipe: str, length: int) -> None:
    engines.same(engines.get("chunks", chunk=128, prefix_tree=False).submit(request(recipe, length)), recipe, length)


def neighbour(engine: Engine, steps: int = 400) -> Handle:
    """Another request, which decodes already."""
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True)
    handle = engine.submit(Request(prompt=text_tokens(20, 5), sampling=sampling, share_prefix=False))
    while not handle.samples[0].token_ids:
        engine.step()
    return handle


def in_slices_beside_another(engines: Engines, recipe: str, length: int) -> None:
    engine = engines.get("slices", chunk=128, prefill_slice_ms=1e-6)  # a layer a step
    other = neighbour(engine)
    engine.submit(request("full", length, 1)).result()  # and with a prefix hit
    engines.same(engine.submit(request(recipe, length)), recipe, length)
    other.cancel()


def as_a_fork(engines: Engines, recipe: str, length: int) -> None:
    """In the middle of a page, and behind a policy's period."""
    engine = engines.get("alone", chunk=512, prefix_tree=False)
    for place in (9, PAGE + 1):
        parent = engine.submit(request(recipe, length))
        while len(parent.samples[0].token_ids) < place:
            engine.step()
        child = parent.fork(SamplingParameters(max_tokens=STEPS - place, ignore_eos=True))
        engines.same(child, recipe, length, skip=place)
        engines.same(parent, recipe, length)


def with_pauses(engines: Engines, recipe: str, length: int) -> None:
    """Parked in the middle of its prefill (behind a prefix hit) and of its answer, all its segments on the disk."""
    engine = engines.get("slices", chunk=128, prefill_slice_ms=1e-6)
    other = neighbour(engine)
    engine.submit(request("full", length, 1)).result()
    handle = engine.submit(request(recipe, length))
    for tokens in (0, 0, 30):
        for _ in range(2):
            engine.step()
        while len(handle.samples[0].token_ids) < tokens:
            engine.step()
        assert engine._scheduler.park_youngest() is not None
        engine.memory.cache.pressure(1 << 30)
    engines.same(handle, recipe, length)
    assert handle.usage.preemptions == 3
    other.cancel()


def cancelled_and_asked_again(engines: Engines, recipe: str, length: int) -> None:
    """After a part of the prompt, and after a part of the answer."""
    engine = engines.get("again", chunk=128, prefill_slice_ms=1e-6)
    for steps in (3, 40):
        handle = engine.submit(request(recipe, length))
        for _ in range(steps):
            engine.step()
        handle.cancel()
    engines.same(engine.submit(request(recipe, length)), recipe, length)


WAYS: dict[str, Callable[[Engines, str, int], None]] = {
    way.__name__: way
    for way in (in_small_chunks, in_slices_beside_another, as_a_fork, with_pauses, cancelled_and_asked_again)
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["streaming+kivi", "snapkv+h2o+kivi", "kvzip"])
def test_every_way_gives_the_same_answer(engines: Engines, recipe: str, way: str) -> None:
    WAYS[way](engines, recipe, few_lengths(RECIPES[recipe])[0])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_way_gives_the_same_answer_at_any_border(engines: Engines, recipe: str, way: str) -> None:
    for length in all_lengths(RECIPES[recipe]):
        WAYS[way](engines, recipe, length)


# --- windowed layers ---------------------------------------------------------------------------------


@pytest.mark.skipif(dispatch.native() is None, reason="only native attention splits by what a layer once held")
@pytest.mark.parametrize("recipe", ["kivi", "kvzip", "streaming+kivi"])
def test_windowed_layers_split_their_attention_as_before_in_forks_and_after_pauses(
    windowed: Model, make_engine: Any, recipe: str
) -> None:
    """A compressed prompt ends in a short page; when windowed layers have let go of it, they still count it."""
    engine: Engine = make_engine(windowed, prefix_tree=False)
    expected = list(engine.submit(request(recipe, 132, 140)))
    other = neighbour(engine)
    for place in (100, 133):
        parent = engine.submit(request(recipe, 132, 140))
        while len(parent.samples[0].token_ids) < place:
            engine.step()
        child = parent.fork(SamplingParameters(max_tokens=140 - place, ignore_eos=True))
        assert engine._scheduler.park_youngest() is not None
        for handle, skip in ((parent, 0), (child, place)):
            for event, right in zip(list(handle), expected[skip:], strict=True):
                assert event.logits is not None and right.logits is not None
                assert np.array_equal(event.logits, right.logits), (recipe, place)
    other.cancel()
