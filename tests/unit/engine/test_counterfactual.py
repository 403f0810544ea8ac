"""What-if replay: the same noise gives the same answer, whoever runs beside it and however it is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens

from thrifty.api import Thrifty
from thrifty.decoding.drawing import distribution
from thrifty.decoding.gumbel import standard_noise
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.counterfactual import observation
from thrifty.engine.drafting.models import facts_of
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.models.model import Model

GUMBEL: dict[str, Any] = {"temperature": 1.0, "noise": "gumbel", "ignore_eos": True}


def request(number: int = 0, length: int = 60, tokens: int = 40, **options: Any) -> Request:
    outer = {name: options.pop(name) for name in ("cache", "samples", "decoding", "forced", "free") if name in options}
    sampling = SamplingParameters(**({"max_tokens": tokens, "seed": 5} | GUMBEL | options))
    return Request(prompt=text_tokens(length + number, number), sampling=sampling, **outer)


def answer(engine: Any, asked: Request) -> list[int]:
    tokens: list[int] = engine.submit(asked).result().token_ids
    return tokens


def slow(engine: Any, asked: Request) -> list[int]:
    """The answer by the formula, from the logits that each event brings."""
    options, tokens = asked.sampling, []
    for place, event in enumerate(engine.submit(asked)):
        row = np.where(distribution(event.logits, options) > 0, event.logits.astype(np.float64), -np.inf)
        noise = standard_noise(options.seed or 0, 0, place, row.size)
        tokens.append(int((row / options.temperature + noise).argmax()))
        assert tokens[-1] == event.token
    return tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_k": 8}, {"top_p": 0.7}])
def test_answers_are_those_of_the_formula(make_engine: Any, model: Model, options: dict[str, Any]) -> None:
    engine = make_engine(model)
    asked = request(**options)
    with_logits = Request(prompt=asked.prompt, sampling=asked.sampling, logits=True)
    assert answer(engine, asked) == slow(engine, with_logits)


def test_any_batch_chunk_cache_and_draft_gives_the_same(make_engine: Any, packed: Model) -> None:
    alone = [answer(make_engine(packed), request(n, seed=n)) for n in range(4)]
    engine = make_engine(packed)
    handles = [engine.submit(request(n, seed=n)) for n in range(4)]
    assert [handle.result().token_ids for handle in handles] == alone
    assert answer(make_engine(packed, chunk=128), request(4, length=300, seed=2)) == answer(
        make_engine(packed, chunk=512), request(4, length=300, seed=2)
    )
    lookup = [{"technique": "prompt-lookup"}]
    assert answer(engine, request(1, seed=1, decoding=lookup)) == alone[1]
    speculative = [{"technique": "speculative", "draft": "small", "length": 3}]
    drafting = make_engine(packed, drafts=("small",), load_draft=lambda name, fits: packed)
    assert answer(drafting, request(3, seed=3, decoding=speculative)) == alone[3]


def test_drafts_by_the_same_noise_are_taken(make_engine: Any, packed: Model) -> None:
    drafting = make_engine(packed, drafts=("small",), load_draft=lambda name, fits: packed)
    handle = drafting.submit(request(decoding=[{"technique": "speculative", "draft": "small", "length": 3}]))
    steps = 0
    while not handle.finished:
        drafting.step()
        steps += 1
    assert steps < 20, "the model drafts for itself: most drafts are taken"


def test_the_strategy_gives_its_noise_to_every_request(make_engine: Any, packed: Model) -> None:
    engine = make_engine(packed)
    strategy = [{"technique": "gumbel-counterfactual"}]
    assert answer(engine, request(decoding=strategy, noise=None)) == answer(engine, request())
    assert answer(engine, request(noise=None)) != answer(engine, request())
    assert answer(engine, request(temperature=0.0)) == answer(engine, request(temperature=0.0, noise=None))


def test_samples_have_noise_of_their_own(make_engine: Any, packed: Model) -> None:
    first, second = make_engine(packed).submit(request(samples=2)).result().samples
    assert first.token_ids != second.token_ids and first.token_ids == answer(make_engine(packed), request())


@pytest.fixture
def thrifty(packed: Model) -> Any:
    with Thrifty(packed, threads=1) as made:
        yield made


def test_a_replaced_token_is_followed_by_the_same_noise(thrifty: Thrifty) -> None:
    prompt, options = text_tokens(50, 1), GUMBEL | {"seed": 3, "max_tokens": 30}
    factual = thrifty.generate(prompt, **options).token_ids
    assert thrifty.replay(prompt, factual, 10, factual[10], **options).token_ids == factual
    other = thrifty.replay(prompt, factual, 10, (factual[10] + 1) % 200, **options).token_ids
    assert len(other) == 30 and other[:10] == factual[:10] and other[10] != factual[10]


def test_an_observed_text_comes_back_and_can_be_replayed(thrifty: Thrifty) -> None:
    prompt, options = text_tokens(50, 2), {"temperature": 0.9, "seed": 8}
    observed = text_tokens(12, 9)  # nobody drew it
    noise = thrifty.hindsight(prompt, observed, **options)
    assert noise.nbytes == 12 * 4 * thrifty.model.config.vocabulary_size
    again = {**options, "noise": noise, "max_tokens": 20, "ignore_eos": True}
    answer = thrifty.generate(prompt, **again).token_ids
    assert answer[:12] == list(observed), "no intervention: the text itself"
    replayed = thrifty.replay(prompt, answer, 4, observed[4], **again).token_ids
    assert replayed == answer
    prompt_lookup = thrifty.engine.submit(
        Request(prompt=prompt, sampling=SamplingParameters(**again), decoding=[{"technique": "prompt-lookup"}])
    )
    assert prompt_lookup.result().token_ids == answer


def test_penalties_are_part_of_what_was_observed(thrifty: Thrifty) -> None:
    prompt, options = text_tokens(50, 2), {"temperature": 0.9, "seed": 8, "repetition_penalty": 1.5}
    observed = text_tokens(10, 4)
    noise = thrifty.hindsight(prompt, observed, **options)
    assert thrifty.generate(prompt, **options, noise=noise, max_tokens=10).token_ids == list(observed)


def test_mistakes_are_named(thrifty: Thrifty, packed: Model) -> None:
    facts, asked = facts_of(packed), request()
    with pytest.raises(PromptError, match="temperature = 0.0.*a greedy answer has no noise"):
        observation(request(temperature=0.0), [1], facts)
    with pytest.raises(PromptError, match="empty; give at least 1 token"):
        observation(asked, [], facts)
    with pytest.raises(PromptError, match="MB of scores; observe its first"):
        observation(asked, [1] * 10_000_000, facts)
    with pytest.raises(PromptError, match="place = 9, but the answer has 3 tokens"):
        thrifty.replay([1, 2], [1, 2, 3], 9, 1, **GUMBEL, seed=1)
    with pytest.raises(PromptError, match="max_tokens = 2 ends before place 2"):
        thrifty.replay([1, 2], [1, 2, 3], 2, 1, **GUMBEL, seed=1, max_tokens=2)
    with pytest.raises(PromptError, match="needs the noise of the factual answer"):
        thrifty.replay([1, 2], [1, 2, 3], 1, 1, temperature=1.0, seed=1)
    with pytest.raises(PromptError, match="needs a seed"):
        thrifty.hindsight([1, 2], [1, 2, 3], temperature=1.0)
    with pytest.raises(PromptError, match="cannot be drawn there"):
        thrifty.hindsight([1, 2], [1, 2, 3], temperature=1.0, top_k=2, seed=1)
