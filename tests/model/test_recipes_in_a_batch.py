"""Eight requests with eight different recipes in one batch on an embedded model: each is answered as it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.engine.test_recipes_in_a_batch import RECIPES

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.text import held_out
from thrifty.kernels import dispatch
from thrifty.models import load

pytestmark = pytest.mark.model

STEPS = 66  # one period of a policy, and two tokens after it


def test_eight_recipes_in_one_batch_answer_as_alone(smollm2: Path) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model = load(smollm2)
    sampling = SamplingParameters(max_tokens=STEPS, ignore_eos=True)
    requests = [
        Request(prompt=held_out(model.tokenizer, 128 + 16 * place, place), sampling=sampling, cache=recipe)
        for place, recipe in enumerate(RECIPES.values())
    ]
    engine = Engine(model, prefix_tree=False, prefill_slice_ms=0)
    try:
        alone = [engine.submit(request).result().token_ids for request in requests]
        handles = [engine.submit(request) for request in requests]
        for name, handle, expected in zip(RECIPES, handles, alone, strict=True):
            assert handle.result().token_ids == expected, name
            assert len(expected) == STEPS
    finally:
        engine.close()
