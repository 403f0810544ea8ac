"""A strategy that drafts gives what plain decoding gives: rejected rows leave no trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.tiny import VOCABULARY, text_tokens

from thrifty.decoding.draft import Draft
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.services import Services
from thrifty.decoding.strategy import Continuation, DecodingStrategy, Drafter
from thrifty.engine.request import Request
from thrifty.models.model import Model

LENGTH = 90


class HintsDrafter(Drafter):
    """Drafts four tokens of a known answer, every third token of it spoilt."""

    def __init__(self, prompt: int, answer: tuple[int, ...]) -> None:
        self.prompt, self.answer = prompt, answer

    def propose(self, continuation: Continuation) -> Draft:
        done = len(continuation.tokens) - self.prompt
        hints = enumerate(self.answer[done : done + 4], done)
        return Draft(tuple(token if at % 3 else (token + 1) % VOCABULARY for at, token in hints))


@dataclass(frozen=True)
class Hints(DecodingStrategy):
    """Drafts a line of a known answer."""

    prompt: int
    answer: tuple[int, ...]

    @property
    def rows(self) -> int:
        return 5

    def open(self, services: Services) -> Drafter:
        return HintsDrafter(self.prompt, self.answer)


CACHES: list[list[dict[str, Any]]] = [
    [],
    [{"technique": "kivi", "bits": 2}],
    [{"technique": "streaming", "window": 60}],
    [{"technique": "minikv", "residual": 64}],
    [{"technique": "h2o", "capacity": 60}],
]
# Every cache greedily; sampled, which changes what is accepted and not what is held, the full one and one that evicts.
CASES = [(cache, 0.0) for cache in CACHES] + [(cache, 1.0) for cache in (CACHES[0], CACHES[-1])]


def told(value: Any) -> str | None:
    """A cache by its technique."""
    return (value[0]["technique"] if value else "full") if isinstance(value, list) else None


MODELS = [pytest.param("plain", marks=pytest.mark.long), "packed", "windowed"]
"""Recurrent layers refuse drafts (test_hybrid.py)."""


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize(("cache", "temperature"), CASES, ids=told)
def test_drafts_change_the_steps_not_the_answer(
    model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, cache: list[dict[str, Any]], temperature: float
) -> None:
    sampling = SamplingParameters(max_tokens=LENGTH, ignore_eos=True, temperature=temperature, seed=4)
    request = {"prompt": text_tokens(100), "sampling": sampling, "cache": cache}
    plain = make_engine(model).submit(Request(**request)).result().token_ids
    engine = make_engine(model)
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: Hints(100, tuple(plain)))
    handle = engine.submit(Request(**request))
    neighbour = engine.submit(Request(prompt=text_tokens(30), sampling=sampling))
    steps = 0
    while not handle.finished:
        engine.step()
        steps += 1
    assert handle.result().token_ids == plain
    assert steps < 0.75 * LENGTH, "drafts were accepted"
    neighbour.cancel()
