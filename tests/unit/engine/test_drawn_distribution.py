"""Sampled answers under strategies that draft have the model's distribution: χ² of counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_config
from tests.unit.engine.conftest import MakeEngine

from thrifty.decoding.drawing import distribution
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.models.model import Model, random_model

SIZE, TOKENS, TOGETHER = 8, 3, 32
PROMPT = [1, 2, 3, 4, 1, 2, 5, 6, 1, 2, 3, 7, 1, 2]
OPTIONS: dict[str, Any] = {"temperature": 0.9, "top_k": 4, "max_tokens": TOKENS, "ignore_eos": True}
SPECULATIVE = [{"technique": "speculative", "draft": "other", "length": 3}]
LOOKAHEAD = [{"technique": "lookahead-pain", "branch_length": 4}]
Answer = tuple[int, ...]
DRAWS = [
    pytest.param(960, marks=pytest.mark.long),
    pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
]


def small(seed: int) -> Model:
    """A model of eight tokens."""
    config = tiny_config(2, vocabulary_size=SIZE, bos_ids=(0,), eos_ids=())
    return random_model(config, seed, scale=0.12)


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine(small(0), drafts=("other",), load_draft=lambda name, fits: small(1), context=64)


def counted(engine: Engine, decoding: Any, draws: int) -> Counter[Answer]:
    """How often each answer came."""
    counts: Counter[Answer] = Counter()
    for seed in range(-(-draws // TOGETHER)):
        sampling = SamplingParameters(seed=seed, **OPTIONS)
        request = Request(prompt=PROMPT, sampling=sampling, decoding=decoding, samples=TOGETHER)
        counts.update(tuple(sample.token_ids) for sample in engine.submit(request).result().samples)
    return counts


def exact(engine: Engine) -> dict[Answer, float]:
    """The probability of each answer, from the model's logits behind each beginning."""
    parameters, chances = SamplingParameters(**OPTIONS), {(): 1.0}
    for _ in range(TOKENS):
        longer: dict[Answer, float] = {}
        for begun, chance in chances.items():
            handle = engine.submit(Request(prompt=[*PROMPT, *begun], forced=[0], logits=True))
            logits = next(event.logits for event in handle if event.logits is not None)
            for token, share in enumerate(distribution(logits, parameters)):
                if share:
                    longer[*begun, token] = chance * float(share)
        chances = longer
    return chances


def statistic(counts: Mapping[Answer, int], chances: Mapping[Answer, float], draws: int) -> tuple[float, int]:
    """χ² and its degrees of freedom; answers that are expected less than five times are one cell."""
    common = [answer for answer, chance in chances.items() if draws * chance >= 5]
    cells = [(counts.get(answer, 0), draws * chances[answer]) for answer in common]
    rest = draws * (1 - sum(chances[answer] for answer in common))
    cells += [(draws - sum(count for count, _ in cells), rest)] if rest >= 5 else []
    return sum((count - wanted) ** 2 / wanted for count, wanted in cells), len(cells) - 1


def fits(counts: Mapping[Answer, int], chances: Mapping[Answer, float], draws: int) -> bool:
    assert set(counts) <= set(chances), "an answer that has no probability"
    found, freedom = statistic(counts, chances, draws)
    return found < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("decoding", [[], SPECULATIVE, LOOKAHEAD], ids=["plain", "speculative", "lookahead"])
def test_answers_are_drawn_from_the_models_distribution(engine: Engine, decoding: Any, draws: int) -> None:
    chances = exact(engine)
    assert sum(chances.values()) == pytest.approx(1.0) and len(chances) == 4**TOKENS
    counts = counted(engine, decoding, draws)
    assert counts.total() == draws and fits(counts, chances, draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_speculated_and_plain_answers_are_counted_alike(engine: Engine, draws: int) -> None:
    """Two samples, one table: χ² of homogeneity."""
    plain, drafted = counted(engine, [], draws), counted(engine, SPECULATIVE, draws)
    both = plain + drafted
    common = [answer for answer, count in both.items() if count >= 10]
    cells = [(plain[answer], drafted[answer]) for answer in common]
    found = sum((left - right) ** 2 / (left + right) for left, right in cells)
    assert found < len(cells) + 4 * math.sqrt(2 * len(cells))
    assert counted(engine, LOOKAHEAD, 320) == counted(engine, [], 320), "the same numbers draw the same tokens"


@pytest.mark.long
def test_the_count_would_show_a_wrong_rule(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts taken whenever the target might say them at all, and rejected ones replaced by draws from p itself."""
    chances = exact(engine)
    with monkeypatch.context() as patch:
        patch.setattr("thrifty.decoding.rejection.residual", lambda wanted, proposed: wanted)
        assert not fits(counted(engine, SPECULATIVE, 960), chances, 960)
    shuffled = dict(zip(chances, np.roll(list(chances.values()), 1).tolist(), strict=True))
    assert not fits(counted(engine, [], 960), shuffled, 960)
