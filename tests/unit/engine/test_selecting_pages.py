"""Decoded rows that select pages: the same answers drafted, in turns, and by the reference; and no page that follows
from them is offered to others.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.forcing import force
from thrifty.kernels import dispatch
from thrifty.models.model import Model

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")

QUEST: list[dict[str, Any]] = [{"technique": "quest", "budget": 48, "page": 16, "dense": 1}]
SAMPLING = SamplingParameters(max_tokens=150, ignore_eos=True)


def answer(engine: Engine, prompt: list[int], cache: list[dict[str, Any]] = QUEST, **options: Any) -> list[int]:
    request = Request(prompt=prompt, sampling=SAMPLING, cache=cache, **options)
    tokens: list[int] = engine.submit(request).result().token_ids
    return tokens


def test_it_answers_otherwise_than_the_full_cache(packed: Model, make_engine: Any) -> None:
    engine, prompt = make_engine(packed, prefix_tree=False), text_tokens(400, 3)
    assert answer(engine, prompt) != answer(engine, prompt, [])


@pytest.mark.parametrize("strategy", [{"technique": "prompt-lookup"}], ids=["a line"])
def test_drafts_change_no_answer(packed: Model, make_engine: Any, strategy: dict[str, Any]) -> None:
    """A repeated prompt makes lookups hit; drafts are cut where a page begins."""
    engine, prompt = make_engine(packed, prefix_tree=False), text_tokens(60, 4) * 6
    plain = answer(engine, prompt)
    assert answer(engine, prompt, decoding=[strategy]) == plain


@pytest.mark.long
def test_native_code_and_the_reference_select_the_same(plain: Model, make_engine: Any) -> None:
    pytest.importorskip("torch", reason="the reference needs torch")
    prompt = text_tokens(300, 5)
    native = answer(make_engine(plain, native=True), prompt)
    assert answer(make_engine(plain, native=False), prompt)[:40] == native[:40]


def test_what_follows_from_selected_pages_is_not_shared(packed: Model, make_engine: Any) -> None:
    engine, prompt = make_engine(packed), text_tokens(300, 6)
    said = answer(engine, prompt)
    handle = engine.submit(Request(prompt=[*prompt, *said], sampling=SAMPLING))
    handle.result()
    assert handle.usage.cached_tokens == 256, "the pages of the prompt alone"


def test_a_measurement_sees_that_something_is_left_out(packed: Model, make_engine: Any) -> None:
    engine, tokens = make_engine(packed), text_tokens(330, 7)
    for budget, left_out in ((48, True), (512, False)):
        table = [{"technique": "quest", "budget": budget, "page": 16, "dense": 0}]
        steps = list(force(engine, tokens[:320], tokens[320:], table, inspect=range(3, 6)))
        seen = [step.evidence for step in steps if step.evidence is not None]
        assert seen and all(evidence.compressed == left_out for evidence in seen)
        assert all(evidence.missing == evidence.quantised == 0 for evidence in seen)
