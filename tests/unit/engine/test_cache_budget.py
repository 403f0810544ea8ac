"""A request's own byte budget: never exceeded, nearly used, and refused where nothing can keep it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty import Thrifty
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission import bounding
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, RecipeError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

PROMPT, ANSWER = 300, 3500
RECIPES: dict[str, list[dict[str, Any]]] = {
    "streaming": [{"technique": "streaming", "window": "budget"}],
    "streaming + kivi": [{"technique": "streaming", "window": "budget"}, {"technique": "kivi", "residual": 64}],
    "h2o": [{"technique": "h2o", "capacity": "budget"}],
    "snapkv + streaming": [{"technique": "snapkv", "keep": 0.5}, {"technique": "streaming", "window": "budget"}],
}


def asked(cache: list[dict[str, Any]], budget: int | None, answer: int | None = ANSWER, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=answer, ignore_eos=True, temperature=0.8, seed=5)
    tokens = text_tokens(PROMPT, 1)
    return Request(prompt=tokens, sampling=sampling, cache=cache, cache_bytes=budget, **options)


@pytest.fixture
def model(packed: Model, plain: Model) -> Model:
    """The native path where it is built: a thousand steps take seconds there."""
    return plain if dispatch.native() is None else packed


@pytest.mark.parametrize(
    ("name", "budget", "used"),
    [
        ("streaming", 2_500_000, 0.7),
        pytest.param("streaming", 4_000_000, 0.8, marks=pytest.mark.long),
        # the bound of a tiny model's codes is mostly whole memory pages
        pytest.param("streaming + kivi", 1_800_000, 0.4, marks=pytest.mark.long),
        pytest.param("h2o", 2_500_000, 0.7, marks=pytest.mark.long),
        pytest.param("h2o", 4_000_000, 0.8, marks=pytest.mark.long),
        pytest.param("snapkv + streaming", 2_500_000, 0.7, marks=pytest.mark.long),
    ],
)
def test_a_long_answer_stays_within_its_budget_and_uses_it(
    model: Model, make_engine: Any, name: str, budget: int, used: float
) -> None:
    engine: Engine = make_engine(model)
    handle = engine.submit(asked(RECIPES[name], budget))
    ledger, reservation = engine.memory.ledger, None
    before = ledger.current
    while not handle.finished:
        engine.step()
        cache = engine.cache_of(handle)
        if cache is not None:
            reservation = cache.reservation
            assert reservation is not None
            assert reservation.used <= reservation.nbytes <= budget
            held = sum(ledger.bytes_of(one) for one in ("cache", "index", "scratch"))
            assert held <= budget
    assert reservation is not None
    assert used * budget < reservation.peak <= budget, "its peak, inside of steps too"
    assert len(handle.samples[0].token_ids) == ANSWER and handle.error is None
    assert ledger.current - before <= 4 * model.config.vocabulary_size


def test_a_budget_changes_nothing_but_the_capacity(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    bounded = engine.submit(asked(RECIPES["streaming"], 1_500_000, 200))
    policies = engine.intake.check(asked(RECIPES["streaming"], 1_500_000, 200)).policies
    plain = engine.submit(asked([{"technique": "streaming", "window": policies[0].window}], None, 200))
    assert bounded.result().token_ids == plain.result().token_ids


@pytest.mark.parametrize("name", ["streaming", "h2o", "snapkv + streaming"])
def test_the_capacity_is_the_largest_that_fits(model: Model, make_engine: Any, name: str) -> None:
    engine = make_engine(model)
    ticket = engine.intake.check(asked(RECIPES[name], 2_000_000))
    open_ones = engine.intake._policies(RECIPES[name])
    budgeted = ticket.policies[-1]
    slots = getattr(budgeted, budgeted.budgeted)
    need = [
        engine.memory.request_bytes(bounding.with_capacity(open_ones, slots + more), PROMPT, PROMPT + ANSWER)
        for more in (0, 1)
    ]
    assert need[0] <= 2_000_000 < need[1]


def test_what_cannot_be_bounded_is_refused_with_what_would_fit(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    for cache in ([], [{"technique": "snapkv", "capacity": 64}]):
        with pytest.raises(BudgetError, match="does not hold this request") as refused:
            engine.submit(asked(cache, 700_000))
        words = str(refused.value)
        need = int(words.split("use cache_bytes = ")[1].split()[0])
        engine.submit(asked(cache, need)).cancel()
        if "the longest answer" in words:
            longest = int(words.split("fits has ")[1].split()[0])
            engine.submit(asked(cache, 700_000, longest)).cancel()
            with pytest.raises(BudgetError):
                engine.submit(asked(cache, 700_000, longest + 1))
    with pytest.raises(BudgetError, match="no answer fits"):
        engine.submit(asked(RECIPES["streaming"], 10_000))


def test_an_answer_without_a_bound_gets_the_longest_that_fits(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    ticket = engine.intake.check(asked([], 1_000_000, None))
    with pytest.raises(BudgetError, match=f"the longest answer that fits has {ticket.maximum_tokens} tokens"):
        engine.intake.check(asked([], 1_000_000, ticket.maximum_tokens + 1))
    bounded = engine.intake.check(asked(RECIPES["streaming"], 2_000_000, None))
    assert bounded.maximum_tokens == engine.intake.context - PROMPT, "a window ends with the context alone"


def test_single_slots_evicted_from_codes_free_nothing_for_sure(model: Model, make_engine: Any) -> None:
    cache = [*RECIPES["h2o"], {"technique": "kivi"}]
    with pytest.raises(RecipeError, match='h2o: capacity = "budget" cannot be kept with kivi: .* use streaming'):
        make_engine(model).submit(asked(cache, 5_000_000))


def test_a_capacity_left_to_no_budget_is_refused(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, cache=RECIPES["h2o"])
    with pytest.raises(RecipeError, match='h2o: capacity = "budget" needs a byte budget of the request'):
        engine.submit(asked(RECIPES["h2o"], None))
    with pytest.raises(PromptError, match="cache_bytes = 0 is out of range"):
        asked([], 0)


def test_samples_and_forks_keep_the_budget(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    handle = engine.submit(asked(RECIPES["streaming"], 4_000_000, 200, samples=2))
    ledger = engine.memory.ledger
    while not handle.finished:
        engine.step()
        assert sum(ledger.bytes_of(one) for one in ("cache", "index", "scratch")) <= 4_000_000
    parent = engine.submit(asked([], 2_000_000, 100))
    while len(parent.samples[0].token_ids) < 10:
        engine.step()
    with pytest.raises(BudgetError, match="does not hold this request"):
        parent.fork(SamplingParameters(max_tokens=3000))
    assert len(parent.fork(SamplingParameters(max_tokens=20, ignore_eos=True)).result().token_ids) == 20


@pytest.mark.parametrize("technique", [None, "h2o", "kivi", "minikv", "kvzip"])
def test_samples_run_in_the_least_budget_that_accepts_them(packed: Model, make_engine: Any, technique: Any) -> None:
    options: dict[str, Any] = {"h2o": {"capacity": 64}, "minikv": {"residual": 64}}.get(technique, {})
    cache = [{"technique": technique} | options] if technique else []
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True, temperature=1.0, seed=5)
    request = Request(prompt=text_tokens(64), samples=4, sampling=sampling, cache=cache)
    roomy = make_engine(packed)
    peak = roomy.memory.footprint(roomy.intake.check(request).policies, 64, 94, 4).peak_bytes
    tight = make_engine(packed, memory=packed.nbytes + roomy.memory.workspace + peak)
    answers = [engine.submit(request).result().samples for engine in (roomy, tight)]
    assert [one.token_ids for one in answers[1]] == [one.token_ids for one in answers[0]]


def test_the_script_interface_takes_sizes(plain: Model) -> None:
    with Thrifty(plain, recipe={"cache": RECIPES["streaming"]}) as thrifty:
        answer = thrifty.generate("hello " * 40, max_tokens=30, ignore_eos=True, cache_memory="2MB")
        assert len(answer.token_ids) == 30
        with pytest.raises(BudgetError, match="cache_memory = 'small' is not a size"):
            thrifty.generate("hello", cache_memory="small")
