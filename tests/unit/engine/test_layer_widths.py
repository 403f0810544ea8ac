"""Layers that differ in heads, KV heads, head size and MLP width, through the whole engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_config, tiny_model, uneven_config
from tests.unit.engine.logits import alone, ask, check_batches_and_chunks, logits_of

from thrifty.cache.edits import Edits
from thrifty.cache.model_info import ModelInfo, Widths
from thrifty.cache.policies.headkv import head_budgets, importance
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.evaluation.roofline.cache_reads import exact_bytes, model_info
from thrifty.evaluation.roofline.sizes import of_model
from thrifty.evaluation.roofline.workspace import workspace
from thrifty.kernels import dispatch
from thrifty.models.model import Model
from thrifty.weights.cutting import Structure, cut
from thrifty.weights.offgrid import offgrid

POLICIES: list[list[dict[str, Any]]] = [
    [{"technique": "snapkv", "capacity": 96}],
    [{"technique": "ada-kv", "capacity": 96}],
    [{"technique": "pyramidkv", "capacity": 96, "beta": 4.0}],
    [{"technique": "kivi", "bits": 4}],
    [{"technique": "minikv"}],
    [{"technique": "streaming", "window": 64}],
    [{"technique": "h2o", "capacity": 80}],
    [{"technique": "h2o", "capacity": 80}, {"technique": "kivi", "bits": 4}],
    [{"technique": "kvzip", "keep": 0.5}],
    [{"technique": "fastgen"}],
]


@pytest.fixture(scope="module")
def model() -> Model:
    """Packed, so that native code runs it."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return tiny_model(packed=True, config=uneven_config())


def test_a_request_is_the_same_alone_in_a_batch_and_in_any_chunks(model: Model, make_engine: Any) -> None:
    check_batches_and_chunks(model, make_engine)


def test_native_code_and_the_reference_agree() -> None:
    model = tiny_model(config=uneven_config())
    native, reference = alone(model, ask(150, 12)), alone(model, ask(150, 12), native=False)
    assert np.abs(native - reference).max() < 2e-3 * np.abs(reference).max()


def test_a_prefix_hit_and_the_next_turn_change_nothing(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    wanted = alone(model, ask(330))
    assert np.array_equal(logits_of(engine.submit(ask(330))), wanted)
    again = engine.submit(ask(330))
    assert np.array_equal(logits_of(again), wanted)
    assert again.result().usage.cached_tokens == 320
    answer = engine.submit(ask(100, 150)).result().token_ids
    turn = Request(prompt=[*text_tokens(100), *answer, *text_tokens(20, 9)], logits=True, sampling=ask(1, 9).sampling)
    handle = engine.submit(turn)
    assert np.array_equal(logits_of(handle), alone(model, turn))
    assert handle.result().usage.cached_tokens == 192


@pytest.mark.parametrize("cache", POLICIES, ids=lambda cache: "+".join(table["technique"] for table in cache))
def test_policies_act_on_every_layer_by_its_own_heads(
    model: Model, cache: list[dict[str, Any]], make_engine: Any
) -> None:
    request = ask(280, 70, cache=cache)
    expected = alone(model, request)
    assert not np.array_equal(expected, alone(model, ask(280, 70)))
    engine = make_engine(model)
    handles = [engine.submit(request), engine.submit(ask(90, 30, seed=3)), engine.submit(ask(280, 70, cache=cache))]
    for handle in (handles[0], handles[2]):
        assert np.array_equal(logits_of(handle), expected)


@pytest.mark.parametrize("cache", POLICIES, ids=lambda cache: "+".join(table["technique"] for table in cache))
def test_native_code_and_the_reference_agree_under_policies(cache: list[dict[str, Any]]) -> None:
    model = tiny_model(config=uneven_config())
    request = ask(200, 8, cache=cache)
    native, reference = alone(model, request), alone(model, request, native=False)
    codes = any(table["technique"] in ("kivi", "minikv") for table in cache)  # native attention rounds queries to them
    if codes:  # then some answers part after a few tokens
        native, reference = native[:3], reference[:3]
    assert np.abs(native - reference).max() < (8e-2 if codes else 4e-3) * np.abs(reference).max()


@pytest.mark.parametrize("cache", [[], *POLICIES], ids=lambda cache: "+".join(t["technique"] for t in cache) or "full")
def test_no_request_holds_more_than_was_promised(model: Model, cache: list[dict[str, Any]], make_engine: Any) -> None:
    engine = make_engine(model, prefix_tree=False)
    policies = engine.intake.check(ask(280, 120, cache=cache)).policies
    bound = engine.memory.cache.footprint(policies, 280, 400)
    handle = engine.submit(ask(280, 120, cache=cache))
    peak = 0
    while not handle.finished:
        engine.step()
        held = [sequence for sequence in engine.memory.cache.sequences if not sequence.freed]
        peak = max([peak, *(sequence.nbytes for sequence in held)])
    assert 0 < peak <= bound.peak_bytes
    heads = sum(own.kv_heads * own.head_dim for own in map(engine.memory.cache.model.of, (0, 1, 3)))
    if not cache:
        assert bound.steady_bytes >= 400 * 2 * 2 * heads
        assert bound.steady_bytes < 1.4 * (448 * 2 * 2 * heads + 192 * 2 * 2 * 64)


def test_one_head_more_costs_one_head_more() -> None:
    layers = (Widths(4, 2, 64), Widths(4, 4, 64))
    own = ModelInfo(heads=4, kv_heads=2, head_dim=64, windows=(None, None), widths=layers)
    even = ModelInfo(heads=4, kv_heads=2, head_dim=64, windows=(None, None))
    from thrifty.cache.footprint import footprint

    slabs = footprint((), even, 64, 64).steady_bytes // 4
    assert footprint((), own, 64, 64).steady_bytes == 6 * slabs
    assert [group.layers for group in own.layer_groups()] == [(0,), (1,)]
    assert [group.layers for group in even.layer_groups()] == [(0, 1)]


def test_layers_of_other_widths_share_no_cache(model: Model, make_engine: Any) -> None:
    cache = make_engine(model).memory.cache
    sequence = cache.create()
    from thrifty.cache.editing.apply import apply_edits

    edits = Edits()
    edits.share(1, 0)
    with pytest.raises(
        RecipeError, match="layer 1 cannot share the cache of layer 0: its heads or head_dim are others"
    ):
        apply_edits(sequence, sequence.collector, edits, sequence.policy_layers)
    sequence.free()


def test_the_roofline_counts_each_layer_by_its_widths(model: Model, make_engine: Any) -> None:
    info = model_info(of_model(model))
    page = [own.kv_heads * own.head_dim * 64 * 2 * 2 for own in map(info.of, range(4))]
    assert exact_bytes(info, 64) == page
    engine = make_engine(model)
    assert engine.runner.workspace <= workspace(model.config, engine.runner.most_rows)


def test_weights_are_turned_by_the_layers_own_heads() -> None:
    model = tiny_model(config=uneven_config())
    view = offgrid(model)
    plain, turned = alone(model, ask(60, 4), native=False), alone(view, ask(60, 4), native=False)
    assert np.abs(plain - turned).max() < 2e-3 * np.abs(plain).max()
    small = dataclasses.replace(model, linears=dict(model.linears), norms=dict(model.norms))
    with pytest.raises(RecipeError, match=r"layers\.1 has widths of its own: choose layers or experts alone"):
        cut(small, Structure(heads={layer: [0] for layer in range(4)}))
    cut(small, Structure(layers=[0, 1]))
    assert np.isfinite(alone(small, ask(60, 4))).all()


def test_equal_widths_written_out_are_the_models_own() -> None:
    plain = tiny_config(2)
    written = dataclasses.replace(
        plain, layers=tuple(dataclasses.replace(own, heads=4, kv_heads=2, head_dim=64) for own in plain.layers)
    )
    one, other = tiny_model(packed=True, config=plain), tiny_model(packed=True, config=written)
    assert np.array_equal(alone(one, ask(100, 10)), alone(other, ask(100, 10)))


def test_scores_of_heads_are_as_wide_as_the_widest_layer() -> None:
    """Shares of a layer with fewer heads end where its heads end, and budgets follow."""
    widths = (Widths(4, 2, 64), Widths(6, 3, 32))
    info = ModelInfo(heads=4, kv_heads=2, head_dim=64, windows=(None, None), widths=widths)
    scores = np.array([[1, 3, 0, 0, 9, 9], [1, 1, 2, 2, 1, 1]], np.float32)
    shares = importance(scores, info, "mean")
    assert [len(own) for own in shares] == [2, 3] == [own.kv_heads for own in widths]
    assert np.allclose(np.concatenate(shares), np.array([2, 0, 1, 2, 1]) / 6)
    budgets = head_budgets(shares, 20, 100, 1.25)
    assert [len(own) for own in budgets] == [2, 3] and sum(map(sum, budgets)) == 5 * 20
