"""The embedded models against transformers on real text, both reading the same GGUF file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.gguf_oracle import oracle
from tests.growing_cache import GrowingCache
from torch import Tensor

from thrifty import models, reference
from thrifty.reference.loading import ReferenceModel, build

pytest.importorskip("transformers", reason="transformers is the oracle (extra 'dev')")
pytestmark = pytest.mark.model

TOKENS = {"smollm2": 200, "gemma3": 560}  # longer than Gemma's window of 512
DECODED = 16
LICENCE = Path(__file__).parents[2] / "LICENSE"
# Absolute: logits reach about 30. Rounding in another order of summation, nothing else.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pair:
    """One file read by both: token ids of real text, transformers' logits of them, and ours to be."""

    name: str
    path: Path
    ids: Tensor
    expected: Tensor


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    path: Path = request.getfixturevalue(request.param)
    tokenizer = models.load(path).tokenizer
    ids = torch.tensor(tokenizer.encode(" ".join(LICENCE.read_text().split()))[: TOKENS[request.param]])
    assert len(ids) == TOKENS[request.param]
    theirs = oracle(path)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    del theirs
    gc.collect()
    yield Pair(request.param, path, ids, expected)


def agreement(logits: Tensor, expected: Tensor) -> float:
    return float((logits.argmax(-1) == expected.argmax(-1)).double().mean())


def report(label: str, logits: Tensor, expected: Tensor) -> None:
    difference, shared = float((logits - expected).abs().max()), agreement(logits, expected)
    print(f"\n{label}: {len(logits)} tokens, largest logit difference {difference:.2e}, top-1 equal {shared:.2%}")


def test_plain_weights_equal_transformers(pair: Pair) -> None:
    model = reference.load(pair.path, dtype=torch.float32)
    logits = model.logits(pair.ids)
    report(f"{pair.name}, fp32", logits, pair.expected)
    assert (logits - pair.expected).abs().max() < TOLERANCE
    assert agreement(logits, pair.expected) == 1.0
    decode(model, pair)


def decode(model: ReferenceModel, pair: Pair) -> None:
    """Prefill and then token after token: the same as the whole."""
    tokens = len(pair.ids)
    cache, start = GrowingCache(model.config), tokens - DECODED
    with torch.no_grad():
        model.decoder(pair.ids[:start], torch.arange(start), cache)
        steps = [model.decoder(pair.ids[i : i + 1], torch.tensor([i]), cache) for i in range(start, tokens)]
    logits, expected = torch.cat(steps), pair.expected[start:]
    report(f"{pair.name}, decoded one by one", logits, expected)
    assert (logits - expected).abs().max() < TOLERANCE
    assert agreement(logits, expected) == 1.0


def test_packed_weights_by_the_reference_path(pair: Pair) -> None:
    """Every type keeps its exact values."""
    model = models.load(pair.path)
    logits = build(model).logits(pair.ids)
    report(f"{pair.name}, packed", logits, pair.expected)
    worst = max(model.report, key=lambda entry: entry.error)
    print(f"largest weight error {worst.error:.2e} in {worst.name} ({worst.origin} as {worst.format})")
    assert worst.error == 0.0
    assert (logits - pair.expected).abs().max() < TOLERANCE
    assert agreement(logits, pair.expected) == 1.0
