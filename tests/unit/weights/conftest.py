"""Tiny random models of every shape that the weights room must handle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from thrifty.models.config.model_config import ExpertConfig, LayerSpec, ModelConfig, RopeConfig
from thrifty.models.model import Model, random_model

ROPE = RopeConfig(theta=10000.0, dimension=16)
LAYER = LayerSpec(window=None, rope=ROPE)
PLAIN = ModelConfig(
    family="tiny",
    vocabulary_size=50,
    hidden_size=96,
    intermediate_size=160,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context_length=64,
    layers=(LAYER, dataclasses.replace(LAYER, window=5)),
    norm_epsilon=1e-5,
    query_scale=0.25,
    tied_embeddings=True,
)
EXPERTS = ExpertConfig(
    count=4,
    active=2,
    intermediate_size=48,
    normalise_probabilities=True,
    shared_intermediate_size=80,
    shared_gate=True,
)
CONFIGS = {
    "plain": PLAIN,
    "untied-biased": dataclasses.replace(
        PLAIN, tied_embeddings=False, attention_bias=True, output_bias=True, mlp_bias=True
    ),
    "gemma-like": dataclasses.replace(
        PLAIN, norm_offset=1.0, qk_norm="head", post_norms=True, activation="gelu_tanh", kv_heads=1
    ),
    "full-norm": dataclasses.replace(PLAIN, qk_norm="full", heads=6, kv_heads=3),
    "experts": dataclasses.replace(PLAIN, layers=(LAYER, dataclasses.replace(LAYER, experts=True)), experts=EXPERTS),
}


def build(config: ModelConfig) -> Model:
    """A model whose norms are random too, so that a norm left in the old order shows."""
    model = random_model(config, seed=3, scale=0.1)
    random = np.random.default_rng(4)
    for norm in model.norms.values():
        norm += random.random(norm.shape, np.float32)
    return model


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> Model:
    return build(CONFIGS[request.param])


@pytest.fixture
def plain() -> Model:
    return build(PLAIN)


@pytest.fixture
def experts() -> Model:
    return build(CONFIGS["experts"])


@pytest.fixture
def wide_heads() -> Model:
    """Heads of two groups of 32, so that a permutation within a head mixes groups."""
    return build(dataclasses.replace(PLAIN, head_dim=64, query_scale=0.125))
