"""Answers in a grammar on an embedded model, beside others that are free."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.json_schemas import fits, random_schema

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.models import load

pytest.importorskip("llguidance")
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def test_fifty_random_schemas_in_a_batch_with_free_answers(smollm2: Path) -> None:
    model, source = load(smollm2), random.Random(4)
    prompt = model.encode_chat([{"role": "user", "content": "Make something up, as JSON."}])
    schemas = [random_schema(source, 2) for _ in range(50)]
    free = Request(prompt=prompt, sampling=SamplingParameters(max_tokens=40))
    seeded = Request(prompt=prompt, sampling=SamplingParameters(max_tokens=40, temperature=0.8, seed=3))
    engine = Engine(model, batch=16, queue=64, context=1024)
    alone = [engine.submit(request).result().token_ids for request in (free, seeded)]
    others = [engine.submit(request) for request in (free, seeded)]
    handles = [
        engine.submit(
            Request(
                prompt=prompt,
                sampling=SamplingParameters(
                    max_tokens=500, temperature=0.7, seed=seed, grammar=Grammar.json_schema(schema)
                ),
            )
        )
        for seed, schema in enumerate(schemas)
    ]
    for schema, handle in zip(schemas, handles, strict=True):
        result = handle.result()
        assert result.finish_reason == "stop" and fits(json.loads(result.text), schema), (schema, result.text)
    assert [handle.result().token_ids for handle in others] == alone
    engine.close()
