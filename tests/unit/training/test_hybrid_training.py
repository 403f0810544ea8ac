"""The hybrid recall model: its training's formula and examples, and what the packaged weights know."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.models.embedded import carried
from thrifty.models.loading import load
from thrifty.reference.recurrent import from_zero
from training.hybrid.network import HybridShape
from training.hybrid.train import STAGES, Stage, Writer, train
from training.hybrid.words import build_tokenizer
from training.recall.network import IGNORED, batched_recurrence

PACKAGED = "recall_hybrid"
POLICIES: list[list[dict[str, object]]] = [
    [],
    [{"technique": "kivi", "bits": 4}],
    [{"technique": "snapkv", "keep": 0.9, "window": 8}],
]


def test_the_product_of_all_rows_is_the_recurrence() -> None:
    random_ = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2 * 30, 3, 8, generator=random_) for _ in range(2))
    value = torch.randn(2 * 30, 3, 5, generator=random_)
    decay = torch.rand(2 * 30, 3, 1, generator=random_) * 0.9 + 0.1
    found = batched_recurrence(2)(0, query, key, value, decay)
    for part in (slice(0, 30), slice(30, 60)):
        wanted = from_zero(0, query[part], key[part], value[part], decay[part])
        assert torch.allclose(found[part], wanted, atol=1e-4)


def test_answers_are_words_of_cities_named_before() -> None:
    writer, stage = Writer(), Stage(64, 3, 6)
    batch = writer.batch(stage, random.Random(1))
    assert batch.tokens.shape == batch.targets.shape == (3, 63)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        told: dict[int, int] = {}
        for city, word, target in zip(tokens[1::2], tokens[2::2], targets[1::2], strict=True):
            if city in told:
                assert target == told[city]
            else:
                assert target == IGNORED
            told[city] = word
    assert (batch.answers >= 0).sum() == (batch.targets != IGNORED).sum() == batch.answers.max() + 1


def test_a_short_training_writes_a_model_that_loads(tmp_path: Path) -> None:
    shape = dataclasses.replace(HybridShape(), rate=1e-3)
    train(3, tmp_path, shape=shape)
    model = load(tmp_path)
    assert [layer.mixer for layer in model.config.layers] == ["recurrent", "recurrent", "attention", "recurrent"]
    assert model.tokenizer is not None
    wanted = build_tokenizer().encode("Lisbon apple", add_special_tokens=False).ids
    assert model.tokenizer.encode("Lisbon apple", add_bos=False) == wanted
    assert model.tokenizer.decode(wanted) == "Lisbon apple"


@pytest.mark.parametrize("cache", POLICIES, ids=lambda cache: cache[0]["technique"] if cache else "full")
def test_the_packaged_model_recalls(cache: list[dict[str, object]]) -> None:
    """Of cities with a word each, named again in another order."""
    writer, chance, right, count = Writer(), random.Random(77), 0, 0
    engine = Engine(load(carried(PACKAGED)))
    for _ in range(4):
        tokens, marks = writer.example(dataclasses.replace(STAGES[3], facts=24), chance)
        answers = [place for place, is_answer in enumerate(marks) if is_answer and place > 200][:6]
        for place in answers:
            sampling = SamplingParameters(max_tokens=1, ignore_eos=True)
            (token,) = engine.submit(Request(prompt=tokens[:place], sampling=sampling, cache=cache)).result().token_ids
            right, count = right + (token == tokens[place]), count + 1
    engine.close()
    assert count == 24
    assert right >= 22
