"""The off-grid view computes the same function from weights in another order."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import ConfigError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.offgrid import _Orders, offgrid

TOKENS = list(range(3, 33))


def test_logits_are_equal(model: Model) -> None:
    before = build(model).logits(TOKENS)
    view = offgrid(model, seed=1)
    np.testing.assert_allclose(build(view).logits(TOKENS), before, atol=1e-4, rtol=1e-4)
    assert np.array_equal(build(model).logits(TOKENS), before)
    assert list(view.linears) == list(model.linears) and list(view.norms) == list(model.norms)
    for name, linear in view.linears.items():
        assert not np.array_equal(linear.dequantize(), model.linears[name].dequantize()), name


def test_every_free_axis_moves_and_queries_keep_their_rows(plain: Model) -> None:
    view = offgrid(plain, seed=1)

    def sorted_rows(model: Model, name: str) -> Floats:
        return np.sort(model.linears[name].dequantize(), axis=1)

    for name in ("embedding", "layers.0.attention.query", "layers.0.attention.key"):
        assert np.array_equal(sorted_rows(view, name), sorted_rows(plain, name))
    for name in ("value", "output"):
        full = f"layers.0.attention.{name}"
        assert not np.array_equal(sorted_rows(view, full), sorted_rows(plain, full))
    for name in ("gate", "up", "down"):
        full = f"layers.0.mlp.{name}"
        assert not np.array_equal(sorted_rows(view, full), sorted_rows(plain, full))


def test_seeds_repeat_and_differ(plain: Model) -> None:
    def embedding(seed: int) -> Floats:
        return offgrid(plain, seed).linears["embedding"].dequantize()

    assert np.array_equal(embedding(1), embedding(1))
    assert not np.array_equal(embedding(1), embedding(2))
    assert offgrid(plain, 1).version != offgrid(plain, 2).version


@pytest.mark.parametrize("seed", [0, 1, -3, 1 << 40])
def test_the_permutations_of_a_seed_are_those_of_torch(plain: Model, seed: int) -> None:
    """So the view of a seed stays the one that published figures were measured on."""
    torch = pytest.importorskip("torch")
    generator, orders = torch.Generator().manual_seed(seed), _Orders(plain.config, seed)
    hidden = torch.randperm(plain.config.hidden_size, generator=generator)
    assert orders.hidden.tolist() == hidden.tolist()
    assert orders.values[0][0][:16].tolist() == torch.randperm(16, generator=generator).tolist()
    assert orders._draw(1).tolist() == [0]


def test_bfloat16_view(plain: Model) -> None:
    view = offgrid(plain, dtype=BFLOAT16)
    assert {linear.label for linear in view.linears.values()} == {"bf16"}
    assert view.nbytes < plain.nbytes * 0.6


def test_a_group_is_on_the_grid_before_and_off_it_after(wide_heads: Model) -> None:
    plain = wide_heads
    for name, linear in plain.linears.items():
        plain.replace(name, GroupLinear.requantize(linear, 4, 32))
    view = offgrid(plain)
    for name, linear in view.linears.items():
        assert _rounding(plain.linears[name]) < 1e-3, name
        assert _rounding(linear) > 0.02, name


def _rounding(linear: PackedLinear) -> float:
    """The relative error of rounding to groups of 4 bits."""
    exact = linear.dequantize()
    error = GroupLinear.requantize(linear, 4, 32).dequantize() - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact))


def test_an_unknown_linear_is_refused(plain: Model) -> None:
    plain.linears["layers.0.attention.extra"] = DenseLinear.from_weight(np.zeros((4, 4), np.float32))
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.extra"):
        offgrid(plain)
