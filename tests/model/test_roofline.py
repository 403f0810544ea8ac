"""The roofline's sums against the embedded model in the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import force
from thrifty.evaluation.roofline import cost, operations, roofline, sizes
from thrifty.evaluation.roofline.cache_reads import held, model_info
from thrifty.evaluation.text import held_out
from thrifty.models import load

pytestmark = pytest.mark.model


def test_bytes_of_a_step_are_those_of_the_engine(smollm2: Path) -> None:
    model = load(smollm2)
    found = sizes.of_model(model)
    tokens = held_out(model.tokenizer, 303)
    engine = Engine(model, prefix_tree=False)
    try:
        steps = list(force(engine, tokens[:300], tokens[300:], [], inspect=(1,)))
    finally:
        engine.close()
    step = operations.decode(found, held(model_info(found), [], 300))
    assert steps[1].evidence is not None
    assert cost.cache_bytes(step) == steps[1].evidence.nbytes
    assert cost.weight_bytes(step) == roofline.weight_bytes_per_token(model)
    assert found.nbytes == model.nbytes
