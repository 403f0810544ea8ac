"""The small mixture of experts: its training's parts, and what the packaged weights are."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import torch

from thrifty.evaluation.text import held_out
from thrifty.models.embedded import carried
from thrifty.models.loading import load
from thrifty.reference.loading import build
from training.mixture.network import MixtureShape, imbalance
from training.mixture.train import Reader, train
from training.recall.network import IGNORED

PACKAGED = "mixture"


def test_pieces_predict_the_next_known_word() -> None:
    ids = [5, 6, 9, 8, 9, 4, 3, 7] * 20
    batch = Reader(ids, 1, 9).batch(random.Random(0), sequences=4, length=32)
    assert batch.tokens.shape == batch.targets.shape == (4, 32)
    assert batch.tokens[:, 0].tolist()[::2] == [1, 1]
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        for following, target in zip(tokens[1:], targets, strict=False):
            assert target == (IGNORED if following == 9 else following)


def test_imbalance_is_least_where_all_experts_are_used_alike() -> None:
    """Written out: experts · Σ share · probability."""
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    probabilities = scores.softmax(-1).numpy()
    wanted = 0.0
    for expert in range(6):
        given = np.mean([expert in np.argsort(-row)[:2] for row in probabilities])
        wanted += 6 * float(given) * float(probabilities[:, expert].mean())
    assert abs(float(imbalance(scores, 2)) - wanted) < 1e-5
    alike = torch.eye(6).roll(1, 0) * 9 + torch.eye(6) * 9
    assert abs(float(imbalance(alike, 2)) - 2) < 1e-5
    assert float(imbalance(torch.tensor([[9.0, 8, 0, 0, 0, 0]] * 12), 2)) > 5


def test_a_short_training_writes_a_model_that_loads(tmp_path: Path) -> None:
    shape = dataclasses.replace(MixtureShape(), vocabulary=400, layers=2, hidden=64, inner=32)
    train(2, tmp_path, shape=shape)
    model = load(tmp_path)
    assert model.config.family == "qwen2_moe" and model.config.experts == shape.config().experts
    assert model.config.layers[1].experts and not model.config.attention_bias
    assert model.tokenizer is not None and model.tokenizer.decode(model.tokenizer.encode(" the")).strip() == "the"


def test_the_packaged_model_knows_the_prose_and_its_experts_differ() -> None:
    model = load(carried(PACKAGED))
    ids = held_out(model.require_tokenizer(), 200, part=3)
    with torch.no_grad():
        chances = build(model).logits(ids).log_softmax(-1)
    loss = -float(np.mean([float(chances[place, token]) for place, token in enumerate(ids[1:])]))
    assert loss < 4.0
    first, second = (model.linears[f"layers.1.mlp.experts.up.{expert}"].dequantize() for expert in (0, 1))
    likeness = float((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))
    assert abs(likeness) < 0.5
