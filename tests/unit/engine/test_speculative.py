"""A draft model: the answers are the target's own, its bytes are counted, its errors are one request's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoint import write_checkpoint
from tests.tiny import text_tokens, tiny_config, tiny_model

from thrifty.cache.sequence import SequenceCache
from thrifty.decoding.drawing import distribution
from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategies.speculative import ModelDrafter, Speculative, as_target
from thrifty.engine.drafting.model import EngineDraftSequence
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, CheckpointError, RecipeError
from thrifty.models import load
from thrifty.models.model import Model
from thrifty.recipe import Recipe

SPECULATIVE = [{"technique": "speculative", "draft": "small", "length": 3}]
CACHES: list[list[dict[str, Any]]] = [
    [],
    [{"technique": "kivi", "bits": 2}],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "streaming", "window": 60}],
    [{"technique": "h2o", "capacity": 60}],
]
MakeSpeculative = Callable[..., Any]


@pytest.fixture
def make(make_engine: Any) -> MakeSpeculative:
    """An engine for which "small" is a given model."""

    def made(model: Model, small: Model, **options: Any) -> Any:
        return make_engine(model, drafts=("small",), load_draft=lambda name, fits: {"small": small}[name], **options)

    return made


@pytest.fixture
def exact(plain: Model) -> Model:
    """The packed model before it was rounded: it often drafts what the packed one says."""
    return plain


def request(number: int = 0, length: int = 100, **options: Any) -> Request:
    outer = {name: options.pop(name) for name in ("cache", "samples", "decoding", "forced", "free") if name in options}
    sampling = SamplingParameters(**({"max_tokens": 60, "ignore_eos": True} | options))
    return Request(prompt=text_tokens(length + number, number), sampling=sampling, **outer)


def settled(engine: Any) -> None:
    """No byte is left but weights, workspace and the drafting model; no sequence of it either."""
    tree, ledger = engine.memory.cache.tree, engine.memory.ledger
    tree.clear()
    assert [ledger.bytes_of(name) for name in ("cache", "tree", "scratch", "index")] == [0] * 4
    assert ledger.bytes_of("draft") == engine.memory.drafts.nbytes
    assert all(model.held == 0 and model._sequences == 0 for model in engine.memory.drafts._models.values())


@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.8, marks=pytest.mark.long)])
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache[0]["technique"] if cache else "full")
def test_greedy_answers_are_plain_ones_and_all_are_alike_alone_and_in_a_batch(
    packed: Model, exact: Model, make: MakeSpeculative, cache: list[dict[str, Any]], temperature: float
) -> None:
    requests = [
        request(number, decoding=SPECULATIVE, cache=cache, temperature=temperature, seed=number) for number in range(3)
    ]
    alone = [make(packed, exact).submit(one).result().token_ids for one in requests]
    engine = make(packed, exact)
    handles = [engine.submit(one) for one in requests]
    others = [engine.submit(request(number, cache=cache)) for number in range(2)]
    assert [handle.result().token_ids for handle in handles] == alone
    plain = [engine.submit(request(number, cache=cache)).result().token_ids for number in range(3)]
    assert [handle.result().token_ids for handle in others] == plain[:2]
    if temperature == 0:
        assert alone == plain
    settled(engine)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_drafted_answers_keep_to_their_grammar(
    packed: Model, exact: Model, make: MakeSpeculative, seed: int | None
) -> None:
    pytest.importorskip("llguidance")
    options: dict[str, Any] = {"grammar": Grammar.regex("([a-c]{3},){4}[x-z]{2}"), "ignore_eos": False}
    options |= {} if seed is None else {"temperature": 1.0, "seed": seed}
    engine = make(packed, exact)
    drafted = engine.submit(request(decoding=SPECULATIVE, **options)).result()
    assert re.fullmatch("([a-c]{3},){4}[x-z]{2}", drafted.text) and drafted.finish_reason == "stop"
    if seed is None:
        assert drafted.token_ids == engine.submit(request(**options)).result().token_ids
    settled(engine)


@pytest.mark.parametrize("native", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_model_that_drafts_for_itself_is_always_right(make: MakeSpeculative, plain: Model, native: bool) -> None:
    engine = make(plain, plain, native=native)
    handle = engine.submit(request(decoding=SPECULATIVE, max_tokens=41))
    steps = 0
    while not handle.finished:
        engine.step()
        steps += 1
    assert steps <= 2 + 10, "forty tokens in tens of four"
    assert handle.result().token_ids == engine.submit(request(max_tokens=41)).result().token_ids


@pytest.mark.long
def test_samples_have_the_targets_distribution(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    """The first two tokens behind the prompt's own, counted over many seeds, against the model's probabilities."""
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 3}
    engine, draws = make(packed, exact), 300
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        tokens = engine.submit(request(decoding=SPECULATIVE, max_tokens=3, seed=seed, **options)).result().token_ids
        counts[tuple(tokens)] = counts.get(tuple(tokens), 0) + 1
    for tokens, count in counts.items():
        forced = Request(prompt=text_tokens(100), forced=list(tokens), logits=True)
        handle = engine.submit(forced)
        logits = [event.logits for event in handle]
        parameters = SamplingParameters(**options)
        rows = zip(logits, tokens, strict=True)
        chance = float(np.prod([distribution(row, parameters)[token] for row, token in rows if row is not None]))
        assert abs(count - draws * chance) < 5 * (draws * chance * (1 - chance)) ** 0.5 + 1
    assert len(counts) > 10


def test_its_bytes_are_counted_before_they_are_held(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    engine = make(packed, exact)
    ledger = engine.memory.ledger
    assert ledger.bytes_of("draft") == 0
    handles = [engine.submit(request(number, decoding=SPECULATIVE, samples=2, temperature=1.0)) for number in range(2)]
    fixed = engine.memory.drafts.nbytes
    assert ledger.bytes_of("draft") == fixed > exact.nbytes
    model = engine.memory.drafts._models["small"]
    most = 0
    while engine.busy:
        engine.step()
        assert model.held <= ledger.bytes_of("draft") - fixed
        most = max(most, model.held)
    assert most > 0 and all(handle.finished for handle in handles)
    assert model._runner.plan._logits.nbytes == 0, "rows of logits go with the sequences"
    settled(engine)


def test_a_fork_and_its_parent_both_draft(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    engine = make(packed, exact)
    plain = engine.submit(request()).result().token_ids
    handle = engine.submit(request(decoding=SPECULATIVE))
    while handle.usage.generated_tokens < 20:
        engine.step()
    child = handle.fork()
    done = handle.usage.generated_tokens
    assert handle.result().token_ids == plain and child.result().token_ids == plain[done:]
    settled(engine)


def test_parked_sequences_give_their_drafts_back_and_go_on(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    engine = make(packed, exact)
    plain = [engine.submit(request(number)).result().token_ids for number in range(2)]
    handles = [engine.submit(request(number, decoding=SPECULATIVE)) for number in range(2)]
    while handles[1].usage.generated_tokens < 5:
        engine.step()
    held = engine.memory.ledger.bytes_of("draft")
    sequence = engine._scheduler.park_youngest()
    assert sequence.drafter is None and engine.memory.ledger.bytes_of("draft") < held
    assert [handle.result().token_ids for handle in handles] == plain
    settled(engine)


def test_a_parked_sequence_returns_when_its_draft_has_room_too(
    packed: Model, exact: Model, make: MakeSpeculative, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not brought back from the disk before, step after step."""
    free = make(packed, exact)
    whole = {"length": 300, "max_tokens": 100, "decoding": SPECULATIVE}
    ticket = free.intake.check(request(2, **whole))
    plain = [free.submit(request(number, 300, max_tokens=100)).result().token_ids for number in range(3)]
    base = packed.nbytes + free.memory.workspace + free.memory.drafts_bytes
    peak = free.memory.footprint((), 302, 402, 1, ticket.drafting).peak_bytes
    resumed: list[SequenceCache] = []
    resume = SequenceCache.resume
    monkeypatch.setattr(SequenceCache, "resume", lambda cache: (resumed.append(cache), resume(cache))[1])
    for factor in (1.5, 1.7, 1.9):
        resumed.clear()
        engine = make(packed, exact, memory=int(base + peak * factor), prefix_tree=False)
        handles = [engine.submit(request(number, **whole)) for number in range(3)]
        for step in range(10**6):
            if not engine.busy:
                break
            engine.step()
            if step == 20:
                engine._scheduler.park_youngest()
        assert [handle.result().token_ids for handle in handles] == plain
        assert len(resumed) <= sum(handle.usage.preemptions for handle in handles)


def test_a_budget_without_room_for_the_draft_says_so(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    free = make(packed, exact)
    ticket = free.intake.check(request(decoding=SPECULATIVE))
    base = packed.nbytes + free.memory.workspace + free.memory.drafts_bytes
    plain = free.memory.footprint((), 100, 160).peak_bytes
    whole = free.memory.footprint((), 100, 160, 1, ticket.drafting).peak_bytes
    assert whole > plain + ticket.drafting.nbytes(160)
    tight = make(packed, exact, memory=base + whole - 1, prefix_tree=False)
    with pytest.raises(BudgetError, match="of models that draft and a cache that peaks at"):
        tight.submit(request(decoding=SPECULATIVE))
    enough = make(packed, exact, memory=base + whole, prefix_tree=False)
    expected = free.submit(request()).result().token_ids
    assert enough.submit(request(decoding=SPECULATIVE)).result().token_ids == expected
    assert enough.memory.ledger.peak <= base + whole
    small = make(packed, exact, memory=base - free.memory.drafts_bytes // 2)
    with pytest.raises(BudgetError):
        small.submit(request(decoding=SPECULATIVE))
    settled(small)


def test_more_waiting_than_fits_all_end(packed: Model, exact: Model, make: MakeSpeculative) -> None:
    free = make(packed, exact)
    plain = [free.submit(request(number)).result().token_ids for number in range(4)]
    ticket = free.intake.check(request(3, decoding=SPECULATIVE))
    base = packed.nbytes + free.memory.workspace + free.memory.drafts_bytes
    whole = free.memory.footprint((), 103, 163, 1, ticket.drafting).peak_bytes
    engine = make(packed, exact, memory=base + whole * 2)
    handles = [engine.submit(request(number, decoding=SPECULATIVE)) for number in range(4)]
    assert [handle.result().token_ids for handle in handles] == plain
    assert engine.memory.ledger.peak <= base + whole * 2
    settled(engine)


@pytest.mark.parametrize("name", ["follow", "rows", "close"])
def test_an_error_of_one_draft_ends_its_own_request(
    packed: Model, exact: Model, make: MakeSpeculative, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = make(packed, exact)
    plain = [engine.submit(request(number)).result().token_ids for number in range(3)]
    handles = [engine.submit(request(number, decoding=SPECULATIVE)) for number in range(3)]
    while handles[2].usage.generated_tokens < 3:
        engine.step()
    victim = next(one for one in engine._scheduler.active if one.answer is handles[1].answer).drafter
    assert isinstance(victim, ModelDrafter)
    usual = getattr(EngineDraftSequence, name)
    raised = []

    def failing(sequence: EngineDraftSequence, *arguments: Any) -> Any:
        if sequence is victim.sequence and (name != "close" or not raised):
            raised.append(1)
            raise ArithmeticError("its draft")
        return usual(sequence, *arguments)

    monkeypatch.setattr(EngineDraftSequence, name, failing)
    assert [handles[place].result().token_ids for place in (0, 2)] == [plain[0], plain[2]]
    if name == "close":
        assert handles[1].result().token_ids == plain[1]
    else:
        with pytest.raises(ArithmeticError, match="its draft"):
            handles[1].result()
        settled(engine)
    assert raised and engine.memory.ledger.bytes_of("draft") == engine.memory.drafts.nbytes


def test_a_draft_of_other_tokens_is_refused(packed: Model, make: MakeSpeculative) -> None:
    other = tiny_model(config=tiny_config(vocabulary_size=300))
    with pytest.raises(RecipeError, match="draft = 'small' has a vocabulary of 300 tokens, the model one of 272"):
        make(packed, other).submit(request(decoding=SPECULATIVE))


def test_padded_vocabularies_fit() -> None:
    logits = np.arange(4, dtype=np.float32)
    assert as_target(logits, 3).tolist() == [0, 1, 2]
    assert as_target(logits, 6).tolist() == [0, 1, 2, 3, -np.inf, -np.inf]


def test_nothing_is_drafted_where_the_drafts_context_ends(packed: Model, make: MakeSpeculative) -> None:
    short = tiny_model(config=tiny_config(context_length=200))
    engine = make(packed, short)
    handle = engine.submit(request(decoding=SPECULATIVE, max_tokens=120))
    assert handle.result().token_ids == engine.submit(request(max_tokens=120)).result().token_ids
    settled(engine)


def test_a_recipe_names_the_draft(tmp_path: Path, make_engine: Any) -> None:
    target, small = write_checkpoint(tmp_path / "target"), write_checkpoint(tmp_path / "small", seed=1)
    recipe = Recipe.parse(f'[[decoding]]\ntechnique = "speculative"\ndraft = "{small}"\nlength = 2\n')
    assert recipe.techniques("decoding") == [Speculative(draft=str(small), length=2)]
    model = load(target)
    engine = make_engine(model, decoding=recipe.decoding)
    assert engine.memory.drafts.nbytes > 0
    prompt, sampling = text_tokens(50), SamplingParameters(max_tokens=30, ignore_eos=True)
    expected = make_engine(model).submit(Request(prompt=prompt, sampling=sampling)).result().token_ids
    assert engine.submit(Request(prompt=prompt, sampling=sampling)).result().token_ids == expected
    for decoding, error, message in [
        ([{"technique": "speculative"}], RecipeError, "option 'draft': Field required"),
        ([{"technique": "speculative", "draft": "x", "lenght": 3}], RecipeError, "Did you mean 'length'"),
        ([{"technique": "speculative", "draft": "x", "length": 64}], RecipeError, "less than or equal to 63"),
        ([{"technique": "speculative", "draft": "no-such"}], CheckpointError, "'no-such' is neither"),
    ]:
        with pytest.raises(error, match=message):
            make_engine(model, decoding=decoding)
