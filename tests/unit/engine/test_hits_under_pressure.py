"""Prefix hits where memory is short: an answer is as alone, and what was accepted ends."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import VOCABULARY, text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.kernels import dispatch

ANSWER = 80
LENGTHS = (150, 210, 300)


def requests() -> list[Request]:
    """Prompts that begin alike."""
    sampling = SamplingParameters.of(max_tokens=ANSWER, ignore_eos=True, logprobs=0)
    return [Request(prompt=text_tokens(length), sampling=sampling) for length in LENGTHS]


def least_budget(engine: Engine) -> int:
    """The bytes in which the longest request is accepted, and a row of logits for each of the others."""
    need = engine.memory.footprint((), LENGTHS[-1], LENGTHS[-1] + ANSWER).peak_bytes + 4 * VOCABULARY * len(LENGTHS)
    return engine.memory.ledger.bytes_of("weights") + engine.memory.workspace + need


@pytest.mark.long
@pytest.mark.parametrize("windows", [(), (100, None, 100)], ids=["global", "windowed"])
def test_answers_are_as_alone_in_every_budget_that_accepts_them(
    windows: tuple[int | None, ...], make_engine: Any
) -> None:
    if dispatch.native() is None:
        pytest.skip("the plain path reads pages on disk as it reads others: nothing could differ")
    model = tiny_model(packed=True, windows=windows)
    apart = make_engine(model, prefix_tree=False, chunk=128)
    expected = [apart.submit(request).result().logprobs for request in requests()]
    least, page = least_budget(apart), apart.memory.cache.footprint((), 1, 1).steady_bytes
    hits = 0
    for budget in range(least, least + 2 * page, page):
        engine = make_engine(model, memory=budget, chunk=128)
        handles = [engine.submit(request) for request in requests()]
        assert [handle.result().logprobs for handle in handles] == expected, f"a budget of {budget} bytes"
        hits += sum(handle.usage.cached_tokens > 0 for handle in handles)
    assert hits > 0, "without a hit this says nothing"
