"""A strategy that drafts gives what plain decoding gives: rejected rows leave no trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.tiny import VOCABULARY, text_tokens

from thrifty.decoding.sampling import Choice
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategy import Accepted, Batch, DecodingStrategy, Draft, Scores, choose
from thrifty.engine.request import Request
from thrifty.models.model import Model

LENGTH = 90


@dataclass(frozen=True)
class Hints(DecodingStrategy):
    """Drafts four tokens of a known answer, every third token of it spoilt."""

    prompt: int
    answer: tuple[int, ...]

    def propose(self, batch: Batch) -> list[Draft]:
        drafts = []
        for one in batch.continuations:
            done = len(one.tokens) - self.prompt
            hints = enumerate(self.answer[done : done + 4], done)
            drafts.append(Draft(tuple(token if at % 3 else (token + 1) % VOCABULARY for at, token in hints)))
        return drafts

    def accept(self, batch: Batch, scores: Scores) -> list[Accepted]:
        found = []
        for one, draft, first in zip(batch.continuations, batch.drafts, batch.first_rows, strict=True):
            choices: list[Choice] = []
            for place in range(len(draft.tokens) + 1):
                choices.append(choose(one.sampler, scores, first + place, offset=place))
                if place < len(draft.tokens) and choices[-1].token != draft.tokens[place]:
                    break
            found.append(Accepted(tuple(choices)))
        return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "cache",
    [
        [],
        [{"technique": "kivi", "bits": 2}],
        [{"technique": "streaming", "window": 60}],
        [{"technique": "h2o", "capacity": 60}],
        [{"technique": "minikv", "residual": 64}],
    ],
    ids=lambda cache: cache[0]["technique"] if cache else "full",
)
def test_drafts_change_the_steps_not_the_answer(
    model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, cache: list[dict[str, Any]]
) -> None:
    if model.config.states:
        pytest.skip("recurrent layers refuse drafts (test_hybrid.py)")
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
