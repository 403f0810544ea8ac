"""Trees of drafts in a batch with adapters, taps and steering: each answer as without drafts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import own_rows, random_adapter
from tests.unit.engine.test_draft_trees import Trees, prompts_of

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission.intake import Intake
from thrifty.engine.drafting.drafting import Drafting
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.errors import RecipeError
from thrifty.models.model import Model

VECTOR = np.random.default_rng(0).standard_normal(128).astype(np.float32)
WAYS: list[dict[str, Any]] = [{}, {"adapter": "a"}, {"steering": {1: VECTOR}, "taps": (0, 2)}, {"adapter": "b"}]


def submit(engine: Engine) -> list[Handle]:
    sampling = SamplingParameters(max_tokens=40, ignore_eos=True)
    prompts = prompts_of(len(WAYS))
    return [engine.submit(Request(prompt=prompts[i], sampling=sampling, **way)) for i, way in enumerate(WAYS)]


@pytest.mark.parametrize("native", [True, pytest.param(False, marks=pytest.mark.long)])
def test_trees_beside_adapters_taps_and_steering(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, plain: Model, native: bool
) -> None:
    """Numbers are fp32: what else a tree changes is the order in which a row's slots are added up."""
    engine = make_engine(plain, native=native, adapters={name: random_adapter(plain, 4, ord(name)) for name in "ab"})
    without = [list(handle) for handle in submit(engine)]
    answers = tuple(tuple(event.token for event in events if event.token is not None) for events in without)
    trees = Trees(answers, tuple(range(len(WAYS))))
    drafting = Intake._drafting

    def drafted(intake: Intake, tables: Any, *more: Any) -> Drafting:
        return dataclasses.replace(drafting(intake, tables, *more), strategy=trees)

    monkeypatch.setattr(Intake, "_drafting", drafted)
    for events, handle in zip(without, submit(engine), strict=True):
        found = list(handle)
        assert [event.token for event in found] == [event.token for event in events]
        for event, wanted in zip(found, events, strict=True):
            assert (event.taps is None) == (wanted.taps is None)
            for layer, state in (wanted.taps or {}).items():
                assert event.taps is not None
                np.testing.assert_allclose(event.taps[layer], state, rtol=0, atol=1e-4 * float(np.abs(state).max()))
    assert max(drafter.longest for drafter in trees.opened[0]) > 2, "no draft was accepted"


def test_drafts_of_rows_without_tokens_are_refused(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    prompt = [*range(40), own_rows(engine, range(40))]
    lookup = [{"technique": "prompt-lookup"}]
    with pytest.raises(RecipeError, match="drafts from the prompt's tokens, and embedded rows have none"):
        engine.submit(Request(prompt=prompt, decoding=lookup))
    assert len(engine.submit(Request(prompt=prompt, sampling=SamplingParameters(max_tokens=3))).result().token_ids) <= 3
