"""Operations and bytes against slow counts, the engine's own figures and the real cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint import write_checkpoint
from tests.tiny import text_tokens, tiny_config, tiny_model

from thrifty.arrays import BFLOAT16
from thrifty.cache.policy import CachePolicy
from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import force
from thrifty.evaluation.roofline import cost, operations, roofline, sizes
from thrifty.evaluation.roofline.cache_reads import exact_bytes, held, model_info
from thrifty.evaluation.roofline.machine import Machine
from thrifty.formats.linear import DenseLinear
from thrifty.models import load
from thrifty.models.config.model_config import ExpertConfig, ModelConfig
from thrifty.models.model import Model
from thrifty.models.peek import config_of
from thrifty.recipe import Recipe
from thrifty.reference import build
from thrifty.reference.linear import Linear
from thrifty.weights.sizes import Predictor
from thrifty.weights.technique import prepare

FAST = Machine("fast", bandwidth=1e9, rates={"int8": 4e9, "bf16": 2e9, "fp32": 1e9}, memory=1 << 30)


def mixture(**changes: Any) -> ModelConfig:
    experts = ExpertConfig(count=6, active=2, intermediate_size=96, normalise_probabilities=True, **changes)
    config = tiny_config(layers=3)
    layers = tuple(dataclasses.replace(layer, experts=index > 0) for index, layer in enumerate(config.layers))
    return dataclasses.replace(config, experts=experts, layers=layers)


CONFIGS = {
    "dense": tiny_config(),
    "windows": tiny_config(windows=(None, 100, 100, None, 64)),
    "untied": tiny_config(tied_embeddings=False, attention_bias=True),
    "experts": mixture(),
    "shared expert": mixture(shared_intermediate_size=80, shared_gate=True),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_reads_the_weights_that_the_roofline_counts(name: str, packed: bool) -> None:
    model = tiny_model(packed=packed, config=CONFIGS[name])
    found = sizes.of_model(model)
    step = operations.decode(found, held(model_info(found), [], 100))
    assert cost.weight_bytes(step) == roofline.weight_bytes_per_token(model)
    assert found.nbytes == model.nbytes


def real_cache(model: Model, length: int, cache: list[dict[str, Any]]) -> int:
    """Bytes of a sequence's cache after a prompt of `length` tokens, in the engine."""
    tokens = text_tokens(length + 2)
    engine = Engine(model, prefix_tree=False, threads=1)
    try:
        steps = list(force(engine, tokens[:length], tokens[length:], cache, inspect=(1,)))
    finally:
        engine.close()
    evidence = steps[1].evidence
    assert evidence is not None
    return evidence.nbytes


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200, 383, 384, 560, 600, 640, 700, 1000])
@pytest.mark.parametrize("name", ["dense", "windows", "untied"])
def test_the_full_cache_is_predicted_to_the_byte(name: str, length: int) -> None:
    model = tiny_model(packed=True, config=CONFIGS[name])
    layers = held(model_info(sizes.of_model(model)), [], length)
    assert sum(layer.nbytes for layer in layers) == real_cache(model, length, [])


@pytest.mark.parametrize(
    "cache",
    [
        [{"technique": "kivi", "bits": 2}],
        [{"technique": "kivi", "bits": 4, "residual": 64}],
        [{"technique": "kivi", "group": 16}],
        [{"technique": "minikv"}],
        [{"technique": "snapkv", "keep": 0.25}],
        [{"technique": "ada-kv", "capacity": 200}],
        [{"technique": "h2o", "keep": 0.2}],
        [{"technique": "streaming", "window": 256}],
        [{"technique": "snapkv", "capacity": 512}, {"technique": "kivi", "bits": 4}],
    ],
)
def test_a_compressed_cache_is_predicted_within_a_page_or_two_a_head(cache: list[dict[str, Any]]) -> None:
    model = tiny_model(packed=True)
    info = model_info(sizes.of_model(model))
    policies: list[CachePolicy] = Recipe(cache=cache).techniques("cache")
    predicted = sum(layer.nbytes for layer in held(info, policies, 1500))
    real = real_cache(model, 1500, cache)
    page = sum(exact_bytes(info, 64))
    assert abs(predicted - real) <= 2.5 * page
    assert predicted < sum(layer.nbytes for layer in held(info, [], 1500)) / 2


def counted(model: Model, tokens: int) -> int:
    """Operations of a whole forward pass over `tokens`, counted where they happen; logits of the last alone."""
    total = 0

    def count(linear: Linear, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        nonlocal total
        total += 2 * inputs[0].numel() * linear.out_features

    decoder = build(model).decoder
    for name, linear in decoder.linears():
        if name not in ("embedding", "head"):
            linear.register_forward_hook(count)
    width = model.config.head_dim * model.config.heads

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        nonlocal total
        window = model.config.layers[layer].window
        for place in range(len(query)):
            seen = sum(1 for other in range(place + 1) if window is None or place - other < window)
            total += 2 * 2 * seen * width
        return query

    decoder(torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens), attend)
    return total + 2 * model.config.hidden_size * model.config.vocabulary_size


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 7, 131])
def test_operations_of_a_prompt_are_those_of_a_forward_pass(name: str, tokens: int) -> None:
    model = tiny_model(config=CONFIGS[name])
    found = sizes.of_model(model)
    step = operations.prefill(found, exact_bytes(model_info(found), tokens), tokens)
    assert sum(one.operations for one in step) == counted(model, tokens)


@given(tokens=st.integers(1, 300), window=st.none() | st.integers(1, 320))
@settings(deadline=None, max_examples=60)
def test_attended_pairs(tokens: int, window: int | None) -> None:
    slow = sum(min(place + 1, window or tokens) for place in range(tokens))
    assert operations.attended(tokens, window) == slow


def test_a_decode_step_attends_to_the_window_and_no_further() -> None:
    found = sizes.of_model(tiny_model(packed=True, config=CONFIGS["windows"]))
    step = operations.decode(found, held(model_info(found), [], 1000))
    work = [one.operations for one in step if one.kind == "attention"]
    assert work == [4 * 4 * 64 * slots for slots in (1000, 100, 100, 1000, 64)]
    reads = [one.cache_bytes for one in step if one.kind == "attention"]
    assert reads[1] == reads[2] < reads[0] / 4


def test_a_batch_reads_the_weights_once_and_every_cache() -> None:
    found = sizes.of_model(tiny_model(packed=True))
    caches = held(model_info(found), [], 500)
    one, eight = operations.decode(found, caches, 1), operations.decode(found, caches, 8)
    assert cost.weight_bytes(eight) == cost.weight_bytes(one)
    assert cost.cache_bytes(eight) == 8 * cost.cache_bytes(one)
    assert sum(x.operations for x in eight) == 8 * sum(x.operations for x in one)


def test_a_batch_reads_the_experts_that_it_is_expected_to_choose() -> None:
    config = mixture()
    for rows in (1, 2, 5):
        generator = np.random.default_rng(0)
        draws = [
            len(np.unique(np.concatenate([generator.permutation(6)[:2] for _ in range(rows)]))) for _ in range(4000)
        ]
        assert operations.distinct_share(config, rows) * 6 == pytest.approx(sum(draws) / len(draws), rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_fold_into_classes_without_losing_anything(name: str) -> None:
    found = sizes.of_model(tiny_model(packed=True, config=CONFIGS[name]))
    step = operations.decode(found, held(model_info(found), [], 333))
    classes = cost.folded(step, found)
    expected = {"dense": 1, "windows": 3, "untied": 1, "experts": 2, "shared expert": 2}[name]
    assert len(classes) == expected + 1
    for field in ("operations", "weight_bytes", "cache_bytes"):
        everything = sum(getattr(one, field) for group in classes for one in group.operations)
        assert everything == sum(getattr(one, field) for one in step)
    seconds = sum(one.seconds(FAST) for group in classes for one in group.operations)
    assert seconds == pytest.approx(sum(one.seconds(FAST) for one in step))


def test_the_bound_is_what_takes_longer() -> None:
    slow_reads = operations.Operation("down", 0, operations=10**6, weight_bytes=10**7, cache_bytes=0, stored="bf16")
    assert slow_reads.bound(FAST) == "memory" and slow_reads.seconds(FAST) == pytest.approx(0.01)
    much_work = dataclasses.replace(slow_reads, operations=10**9)
    assert much_work.bound(FAST) == "compute" and much_work.seconds(FAST) == pytest.approx(0.5)


def test_the_short_forms_agree_with_the_estimate() -> None:
    model = tiny_model(packed=True, config=CONFIGS["windows"])
    whole = cost.estimate(sizes.of_model(model), [], FAST, length=777, batch=3)
    cache_bytes = cost.cache_bytes(whole.decode) // 3
    assert cost.decode_seconds(model, cache_bytes, 3, FAST) == pytest.approx(whole.decode_seconds)
    assert cost.decode_seconds(whole.sizes, cache_bytes, 3, FAST) == cost.decode_seconds(model, cache_bytes, 3, FAST)
    alone = cost.estimate(sizes.of_model(model), [], FAST, length=777)
    assert cost.prefill_seconds(model, 777, FAST) == pytest.approx(alone.prefill_seconds)
    assert cost.decode_seconds(model, 10**9, 2, FAST) > 2.0


def test_an_estimate_says_whether_it_fits() -> None:
    found = sizes.of_model(tiny_model(packed=True))
    fitting = cost.estimate(found, [], FAST, length=1000)
    assert fitting.fits and fitting.memory > found.nbytes + cost.cache_bytes(fitting.decode) - 1
    tight = dataclasses.replace(FAST, memory=fitting.memory - 1)
    assert not cost.estimate(found, [], tight, length=1000).fits


@pytest.mark.parametrize("name", [*CONFIGS, "qk norms"])
def test_a_config_alone_weighs_what_a_16_bit_checkpoint_weighs(name: str) -> None:
    config = CONFIGS.get(name) or tiny_config(qk_norm="head", post_norms=True)
    found = sizes.of_config(config)
    model = tiny_model(config=config)
    for place, linear in list(model.linears.items()):
        assert isinstance(linear, DenseLinear)
        if not place.endswith((".router", ".shared_gate")):
            model.replace(place, DenseLinear.from_weight(linear.weight, BFLOAT16, packed=True, bias=linear.bias))
    assert found == sizes.of_model(model)


def test_a_folder_needs_only_its_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    with_weights = sizes.of_model(load(folder))
    (folder / "model.safetensors").unlink()
    config = config_of(folder)
    assert config is not None
    assert sizes.of_config(config) == with_weights


@pytest.mark.parametrize(
    "table",
    [
        {"technique": "rtn", "bits": 4},
        {"technique": "rtn", "bits": 8, "group": 128, "symmetric": True},
        {"technique": "rtn", "bits": 4, "embedding_bits": 4, "layers": [0, 2]},
        {"technique": "rtn", "bits": 4, "skip": ["*.down"]},
    ],
)
@pytest.mark.parametrize("name", ["untied", "experts"])
def test_weight_techniques_take_the_bytes_that_were_predicted(name: str, table: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIGS[name], vocabulary_size=277, intermediate_size=250)
    model = tiny_model(config=config)
    techniques = Recipe(weights=[table]).techniques("weights")
    predictor = Predictor(techniques)

    def restore(linear: sizes.StoredLinear) -> sizes.StoredLinear:
        found = predictor.stored(linear.name, linear.rows, linear.columns, bias=linear.has_bias)
        return linear if found is None else dataclasses.replace(linear, nbytes=found[0], label=found[1])

    assert sizes.of_model(model).stored(restore) == sizes.of_model(prepare(model, techniques))
