"""The native recurrence against a plain loop over rows, channels and heads, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import hybrid_config, tiny_model
from tests.unit.kernels.native_pages import using

from thrifty.arrays import Floats
from thrifty.engine.plan.plan import compile_plan
from thrifty.errors import KernelError
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.models.config.layer_spec import LayerSpec, RecurrentSpec, recurrent_layer
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def layer_by_loop(model: Model, index: int, hidden: Floats, state: Floats) -> tuple[Floats, Floats]:
    """What the mixer of a recurrent layer adds to the hidden state, and the state after it; in fp64."""
    config, name = model.config, f"layers.{index}"
    spec = config.layers[index].recurrent
    assert spec is not None
    weights = {part: model.linears[f"{name}.recurrent.{part}"] for part in PARTS}
    norm = model.norms[f"{name}.attention_norm"]
    added = np.zeros_like(hidden, dtype=np.float64)
    for row, x in enumerate(hidden.astype(np.float64)):
        x = x / np.sqrt((x**2).mean() + config.norm_epsilon) * norm
        q, k, v, g, d = (weights[part].dequantize() @ x for part in PARTS[:-1])
        bias = weights["decay"].bias
        assert bias is not None
        decay = sigmoid(d + bias) ** (1 / spec.temperature)
        mixed = []
        for head in range(spec.heads):
            keys = slice(head * spec.key_dim, (head + 1) * spec.key_dim)
            values = slice(head * spec.value_dim, (head + 1) * spec.value_dim)
            own = decay[keys] if spec.decay == "channel" else np.full(spec.key_dim, decay[head])
            for c in range(spec.key_dim):
                state[head, c] = own[c] * state[head, c] + k[keys][c] * v[values]
            out = spec.key_dim**-0.5 * state[head].T @ q[keys]
            out = out / np.sqrt((out**2).mean() + config.norm_epsilon) * model.norms[f"{name}.recurrent.norm"]
            mixed.append(g[values] * sigmoid(g[values]) * out)
        added[row] = weights["output"].dequantize() @ np.concatenate(mixed)
    return added, state


PARTS = ("query", "key", "value", "gate", "decay", "output")


def one_layer(spec: RecurrentSpec) -> Model:
    """A model whose first layer's MLP adds nothing, so that the mixer is seen alone."""
    config = hybrid_config("ra")
    config = dataclasses.replace(config, layers=(recurrent_layer(spec), config.layers[1]))
    model = tiny_model(config=config)
    down = model.linears["layers.0.mlp.down"]
    model.replace("layers.0.mlp.down", DenseLinear.from_weight(np.zeros_like(down.dequantize())))
    return model


def view_of(config: ModelConfig) -> tuple[Any, list[Floats]]:
    """A view for steps of layer 0, and its two buffers."""
    view = dispatch.require().View(len(config.layers), config.kv_heads, config.head_dim)
    buffers = [np.zeros(config.states[0], np.float32) for _ in range(2)]
    view.set_state(0, buffers[0], buffers[1], 0)
    return view, buffers


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize(
    "spec",
    [
        RecurrentSpec(3, 24, 40, "head", 2.0),
        RecurrentSpec(3, 24, 40, "channel"),
        RecurrentSpec(2, 5, 7, "channel", 1.0),
        RecurrentSpec(1, 33, 18, "head"),
    ],
)
def test_the_recurrence_is_the_papers(spec: RecurrentSpec, isa: str) -> None:
    with using(isa):
        model = one_layer(spec)
        plan = compile_plan(model, 64)
        view, buffers = view_of(model.config)
        hidden = np.random.default_rng(1).standard_normal((20, model.config.hidden_size), np.float32)
        state = np.zeros((spec.heads, spec.key_dim, spec.value_dim))
        for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
            rows = hidden[part].copy()
            wanted, state = layer_by_loop(model, 0, rows, state)
            found = plan.layers(rows, np.arange(part.start, part.stop), [view], [len(rows)], 0, 1)
            assert np.abs(found - hidden[part] - wanted).max() < 1e-4 * np.abs(wanted).max()
            view.commit_states()
    newest = buffers[1]  # after three commits: the buffers changed places as often
    assert np.abs(newest.reshape(state.shape) - state).max() < 1e-4 * np.abs(state).max()


def test_rows_are_dropped_together_or_not_at_all() -> None:
    model = one_layer(RecurrentSpec(3, 24, 40, "head"))
    plan = compile_plan(model, 64)
    view, buffers = view_of(model.config)
    hidden = np.random.default_rng(2).standard_normal((6, model.config.hidden_size), np.float32)

    def run(first: int, stop: int) -> Floats:
        return plan.layers(hidden[first:stop].copy(), np.arange(first, stop), [view], [stop - first], 0, 1)

    run(0, 2)
    view.commit_states()
    expected, kept = run(2, 5), buffers[1].copy()
    view.truncate(0, 3)
    assert np.array_equal(buffers[1], kept), "what was committed is as it was"
    assert np.array_equal(run(2, 5), expected)
    view.truncate(0, 1)
    with pytest.raises(KernelError, match="lost its state"):
        run(4, 5)
    with pytest.raises(RuntimeError, match="lost its state"):
        view.commit_states()
    view.truncate(0, 2)
    assert np.array_equal(run(2, 5), expected)


def test_a_step_without_its_state_is_refused() -> None:
    model = one_layer(RecurrentSpec(3, 24, 40, "head"))
    plan = compile_plan(model, 64)
    hidden = np.zeros((1, model.config.hidden_size), np.float32)
    view = dispatch.require().View(2, model.config.kv_heads, model.config.head_dim)
    with pytest.raises(KernelError, match=r"layer 0 needs a recurrent state of 2880 numbers; the view has 0"):
        plan.layers(hidden, np.arange(1), [view], [1], 0, 1)
    with pytest.raises(ValueError, match="two buffers of its own"):
        buffer = np.zeros(2880, np.float32)
        view.set_state(0, buffer, buffer, 0)
    view, _ = view_of(model.config)
    tree = np.ones(1, np.int64)
    with pytest.raises(KernelError, match="layer 0 is recurrent and takes no tree"):
        plan.layers(hidden, np.arange(1), [view], [1], 0, 1, tree=tree)


def test_layers_that_the_plan_cannot_do_are_named() -> None:
    config = hybrid_config("ra")
    rope = config.layers[1].rope
    model = tiny_model(config=config)
    latent = LayerSpec(None, rope, mixer="latent")
    model.config = dataclasses.replace(config, layers=(config.layers[0], latent))
    with pytest.raises(KernelError, match=r"layers\.1 mixes by latent attention, which the plan does not do"):
        compile_plan(model, 8)
