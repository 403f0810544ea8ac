"""What every prompt program must do, found by its file: short prompts as they are, others alike in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine

from thrifty import registry
from thrifty.api import open_engine
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.media import Embeddings
from thrifty.engine.prompt.program import PromptProgram
from thrifty.engine.request import Event, Handle, Request
from thrifty.errors import BudgetError, PromptError, RecipeError
from thrifty.models.model import Model
from thrifty.recipe import Recipe

CAPACITY, LENGTH = 120, 420
REQUIRED: dict[str, Any] = {"draft": "small"}
"""Values of options that must be set."""
SMALLER: dict[str, Any] = {"first_layer": 0, "window": 16, "lookahead": 5}
"""Of options that a tiny model needs otherwise."""


def table(name: str) -> dict[str, Any]:
    """A recipe's table of a program."""
    card = registry.describe("prompt", name)
    smaller = {option: value for option, value in SMALLER.items() if option in card["options"]}
    return {"technique": name, "capacity": CAPACITY} | {own: REQUIRED[own] for own in card["required"]} | smaller


@pytest.fixture(params=registry.names("prompt"))
def programs(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return [table(request.param)]


@pytest.fixture(scope="module")
def small() -> Model:
    return tiny_model(packed=True, seed=1, layers=2)


@pytest.fixture
def make(make_engine: MakeEngine, packed: Model, small: Model) -> Any:
    def engine(**options: Any) -> Engine:
        return make_engine(packed, drafts=("small",), load_draft=lambda name, fits: small, **options)

    return engine


def ask(programs: list[dict[str, Any]], length: int = LENGTH, count: int = 20, **options: Any) -> Request:
    sampling = options.pop("sampling", SamplingParameters(max_tokens=count, ignore_eos=True))
    return Request(prompt=text_tokens(length, 3), sampling=sampling, programs=programs, logits=True, **options)


def same(found: list[Event], expected: list[Event]) -> None:
    """Equal tokens, equal bits."""
    assert [event.token for event in found] == [event.token for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logits is not None and other.logits is not None and np.array_equal(one.logits, other.logits)


def test_it_says_what_it_leaves(programs: list[dict[str, Any]]) -> None:
    program: PromptProgram = registry.build("prompt", programs[0])
    assert not program.applies(CAPACITY) and program.applies(CAPACITY + 100)
    assert hash(program) == hash(registry.build("prompt", programs[0]))


def test_a_prompt_within_the_budget_is_read_as_it_is(make: Any, programs: list[dict[str, Any]]) -> None:
    engine = make()
    plain = list(engine.submit(ask([], CAPACITY)))
    handle = engine.submit(ask(programs, CAPACITY))
    same(list(handle), plain)
    assert handle.usage.kept_tokens == handle.usage.prompt_tokens == CAPACITY
    assert handle.usage.cached_tokens == 64, "its pages are those of a prompt that is read whole"


def test_usage_tells_what_was_kept(make: Any, programs: list[dict[str, Any]]) -> None:
    engine = make()
    handle = engine.submit(ask(programs))
    handle.result()
    assert (handle.usage.prompt_tokens, handle.usage.kept_tokens) == (LENGTH, CAPACITY)
    assert handle.usage.kv_bytes > 0


def test_alone_in_a_batch_cut_and_with_a_hit_bits_are_equal(make: Any, programs: list[dict[str, Any]]) -> None:
    alone = list(make(prefix_tree=False).submit(ask(programs)))
    chat = SamplingParameters(max_tokens=60, ignore_eos=True)
    for options in ({}, {"prefill_slice_ms": 1e-6}, {"chunk": 128}, {"prefill_slice_ms": 0}):
        engine = make(**options)
        beside = engine.submit(Request(prompt=text_tokens(40), sampling=chat))
        for _ in range(2):
            engine.step()
        handles = [engine.submit(ask(programs)) for _ in range(2)]
        for handle in handles:
            same(list(handle), alone)
        if registry.build("prompt", programs[0]).traits.drops_tokens:
            assert handles[1].usage.cached_tokens == 64, "the second begins with pages of the first"
        assert len(beside.result().token_ids) == 60


def test_its_pages_are_not_those_of_whole_prompts(make: Any, programs: list[dict[str, Any]]) -> None:
    """Unless all tokens are read where they stand: then it begins with what a whole prompt left."""
    program: PromptProgram = registry.build("prompt", programs[0])
    engine = make()
    engine.submit(ask([])).result()
    for cached in (0, 64) if program.traits.drops_tokens else (384, 384):
        handle = engine.submit(ask(programs))
        handle.result()
        assert handle.usage.cached_tokens == cached
    others = programs[0] | {"capacity": CAPACITY + 4}
    handle = engine.submit(ask([others]))
    handle.result()
    assert handle.usage.cached_tokens == (0 if program.traits.drops_tokens else 384), "of other options, too"


def test_prompts_that_are_kept_on_disk_change_no_bit(make: Any, programs: list[dict[str, Any]]) -> None:
    alone = list(make(prefix_tree=False).submit(ask(programs)))
    engine = make(conversation_disk="100MB")
    for turn in range(3):
        handle = engine.submit(ask(programs))
        same(list(handle), alone)
        assert (handle.usage.cached_tokens >= 64) == (turn > 0)


def test_samples_share_it(make: Any, programs: list[dict[str, Any]]) -> None:
    sampling = SamplingParameters(max_tokens=20, ignore_eos=True, temperature=0.9, seed=5)
    single = make().submit(ask(programs, sampling=sampling)).result()
    several = make().submit(ask(programs, sampling=sampling, samples=3)).result()
    assert several.samples[0].token_ids == single.token_ids
    assert len({tuple(sample.token_ids) for sample in several.samples}) > 1


def test_an_answer_forks(make: Any, programs: list[dict[str, Any]]) -> None:
    engine = make()
    handle = engine.submit(ask(programs, count=30))
    while handle.usage.generated_tokens < 5:
        engine.step()
    branch = handle.fork(SamplingParameters(max_tokens=25, ignore_eos=True))
    answer = handle.result().token_ids
    assert branch.result().token_ids == answer[5:]


def test_a_cancelled_one_leaves_nothing(make: Any, programs: list[dict[str, Any]]) -> None:
    engine = make(prefix_tree=False, prefill_slice_ms=1e-6)
    chat = engine.submit(Request(prompt=text_tokens(30), sampling=SamplingParameters(max_tokens=400, ignore_eos=True)))
    while not chat.samples[0].token_ids:
        engine.step()
    engine.submit(ask(programs)).cancel()  # what it loads to draft stays
    before = {name: engine.memory.ledger.bytes_of(name) for name in ("draft", "scratch", "index", "workspace")}
    for steps in (1, 2, 3, 5, 8, 13):
        handle = engine.submit(ask(programs))
        for _ in range(steps):
            engine.step()
        handle.cancel()
        assert {name: engine.memory.ledger.bytes_of(name) for name in before} == before, steps
    assert all(draft.held == 0 for draft in engine.memory.drafts._models.values())
    chat.cancel()


def test_a_budget_of_its_bound_is_enough_and_the_ledger_stays_within(make: Any, programs: list[dict[str, Any]]) -> None:
    free = make(prefix_tree=False)
    wanted = free.submit(ask(programs)).result().token_ids
    with pytest.raises(BudgetError, match=r"use a budget of (\d+) bytes") as refused:
        least = free.memory.ledger.bytes_of("weights") + free.memory.workspace + free.memory.drafts.nbytes
        engine = make(prefix_tree=False, memory=least + free.memory.footprint((), 1, 2).peak_bytes)
        engine.submit(ask(programs))
    budget = int(str(refused.value).split("use a budget of ")[1].split(" bytes")[0])
    engine = make(prefix_tree=False, memory=budget)
    assert engine.submit(ask(programs)).result().token_ids == wanted
    assert engine.memory.ledger.peak <= budget


def test_a_prompt_that_is_parked_begins_anew(make: Any, programs: list[dict[str, Any]]) -> None:
    """Preempted at any step of it, it gives the same bits."""
    alone = list(make(prefix_tree=False).submit(ask(programs)))
    engine = make(prefix_tree=False, prefill_slice_ms=1e-6)
    chat = engine.submit(Request(prompt=text_tokens(30), sampling=SamplingParameters(max_tokens=900, ignore_eos=True)))
    while not chat.samples[0].token_ids:
        engine.step()
    for steps in (1, 2, 4, 7):
        handle: Handle = engine.submit(ask(programs))
        for _ in range(steps):
            engine.step()
        with engine._turn:
            assert engine._scheduler.park_youngest() is not None
        assert sum(draft.held for draft in engine.memory.drafts._models.values()) == 0
        same(list(handle), alone)
        assert handle.usage.preemptions == 1
    chat.cancel()


def test_a_session_and_embedded_rows_are_refused_by_name(make: Any, programs: list[dict[str, Any]]) -> None:
    engine, name = make(), programs[0]["technique"]
    with pytest.raises(PromptError, match=f"a session goes on from a cache of all its tokens, which {name} does not"):
        engine.submit(ask(programs, session="one"))
    rows = Embeddings(np.zeros((4, 128), np.float32), key="picture")
    prompt = [*text_tokens(300), rows, *text_tokens(20)]
    with pytest.raises(PromptError, match=f"{name} chooses among a prompt's tokens, and this prompt has embedded rows"):
        engine.submit(Request(prompt=prompt, programs=programs))


def test_steering_and_the_recipes_of_other_stages_go_along(make: Any, programs: list[dict[str, Any]]) -> None:
    engine = make()
    steering = {1: np.linspace(-9, 9, 128, dtype=np.float32)}
    plain = engine.submit(ask(programs)).result().token_ids
    steered = engine.submit(ask(programs, steering=steering)).result().token_ids
    assert steered != plain
    lookup = [{"technique": "prompt-lookup"}]
    assert engine.submit(ask(programs, decoding=lookup)).result().token_ids == plain
    drafting = [{"technique": "speculative", "draft": "small", "length": 3}]
    assert engine.submit(ask(programs, decoding=drafting)).result().token_ids == plain
    kivi = [{"technique": "kivi", "bits": 4, "residual": 32}]
    assert len(engine.submit(ask(programs, cache=kivi)).result().token_ids) == 20


def test_an_engines_own_programs_are_those_of_requests_that_bring_none(
    make_engine: MakeEngine, packed: Model, small: Model, programs: list[dict[str, Any]]
) -> None:
    engine = make_engine(packed, programs=programs, load_draft=lambda name, fits: small)
    handle = engine.submit(ask(programs=None))  # type: ignore[arg-type]
    handle.result()
    assert handle.usage.kept_tokens == CAPACITY
    plain = engine.submit(ask([]))
    plain.result()
    assert plain.usage.kept_tokens == LENGTH


def test_a_request_cannot_make_the_engine_load_a_model(
    make_engine: MakeEngine, packed: Model, programs: list[dict[str, Any]]
) -> None:
    engine = make_engine(packed)
    if "draft" not in programs[0]:
        engine.submit(ask(programs)).result()
        return
    with pytest.raises(RecipeError, match="draft = 'small' is no model that requests of this engine may draft with"):
        engine.submit(ask(programs))


def test_an_unknown_program_says_the_nearest(make: Any) -> None:
    with pytest.raises(RecipeError, match="no technique 'gemfiltr' for stage 'prompt'. Did you mean 'gemfilter'"):
        make().submit(ask([{"technique": "gemfiltr"}]))


def test_a_recipe_brings_it_to_an_engine_and_names_its_draft(
    make_engine: MakeEngine, packed: Model, small: Model, programs: list[dict[str, Any]]
) -> None:
    recipe = Recipe.from_document({"prompt": programs})
    assert recipe.drafts == (("small",) if "draft" in programs[0] else ())
    assert recipe.label().startswith(programs[0]["technique"])

    def make(model: Model, **options: Any) -> Engine:
        return make_engine(model, **options | {"load_draft": lambda name, fits: small})

    engine = open_engine(packed, recipe, make=make)
    handle = engine.submit(ask(programs=None))  # type: ignore[arg-type]
    handle.result()
    assert handle.usage.kept_tokens == CAPACITY
