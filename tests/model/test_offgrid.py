"""SmolLM2 as it was published lies on a 4-bit grid; its off-grid view is the same function and does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from thrifty import models, registry
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.offgrid import offgrid
from thrifty.weights.technique import WeightTechnique, prepare

pytestmark = pytest.mark.model

TEXT = (
    "The lighthouse keeper climbed the stairs each evening and wrote the weather into a small blue book. "
    "In winter the pages filled with wind; in summer there was little to say, and he drew the gulls instead."
)


@pytest.fixture(scope="module")
def shipped(smollm2: Path) -> Model:
    return models.load(smollm2)


@pytest.fixture(scope="module")
def tokens(shipped: Model) -> list[int]:
    return shipped.tokenizer.encode(TEXT)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def view(shipped: Model) -> Model:
    return offgrid(shipped, seed=1)


def rtn4() -> WeightTechnique:
    return registry.build("weights", {"technique": "rtn", "bits": 4, "group": 32})  # type: ignore[no-any-return]


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean Kullback-Leibler divergence in nats a token."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_view_is_the_same_function(shipped: Model, view: Model, tokens: list[int]) -> None:
    before, after = build(shipped).logits(tokens), build(view).logits(tokens)
    assert torch.allclose(after, before, atol=1e-4, rtol=1e-5)
    assert divergence(before, after) < 1e-8


def test_rounding_the_published_weights_proves_nothing(shipped: Model, tokens: list[int]) -> None:
    small = prepare(shipped, [rtn4()])
    rounded = [entry for entry in small.report if entry.format == "int4-g32"]
    assert len(rounded) == 7 * 30
    assert max(entry.error for entry in rounded) < 1e-3
    assert divergence(build(shipped).logits(tokens), build(small).logits(tokens)) < 1e-4


def test_rounding_the_view_costs_what_rounding_costs(view: Model, tokens: list[int]) -> None:
    small = prepare(view, [rtn4()])
    rounded = [entry for entry in small.report if entry.format == "int4-g32"]
    assert len(rounded) == 7 * 30
    assert min(entry.error for entry in rounded) > 0.02
    assert divergence(build(view).logits(tokens), build(small).logits(tokens)) > 0.02
