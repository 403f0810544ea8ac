"""The off-grid view computes the same function from weights in another order."""

from __future__ import annotations

import pytest
import torch

from thrifty.errors import ConfigError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import Model
from thrifty.weights.offgrid import offgrid
from thrifty.weights.structure import linears

TOKENS = list(range(3, 33))


def test_logits_are_equal(model: Model) -> None:
    before = model.logits(TOKENS)
    view = offgrid(model, seed=1)
    assert torch.allclose(view.logits(TOKENS), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.logits(TOKENS), before)
    for linear in linears(view.decoder):
        original = model.decoder.get_submodule(linear.name)
        assert not torch.equal(linear.linear.dequantize(), original.dequantize()), linear.name  # type: ignore[operator]


def test_every_free_axis_moves_and_queries_keep_their_rows(plain: Model) -> None:
    view = offgrid(plain, seed=1)

    def sorted_rows(model: Model, name: str) -> torch.Tensor:
        return model.decoder.get_submodule(name).dequantize().sort(dim=1).values  # type: ignore[operator]

    for name in ("embedding", "layers.0.attention.query", "layers.0.attention.key"):
        assert torch.equal(sorted_rows(view, name), sorted_rows(plain, name))
    for name in ("value", "output"):
        full = f"layers.0.attention.{name}"
        assert not torch.equal(sorted_rows(view, full), sorted_rows(plain, full))
    for name in ("gate", "up", "down"):
        full = f"layers.0.mlp.{name}"
        assert not torch.equal(sorted_rows(view, full), sorted_rows(plain, full))


def test_seeds_repeat_and_differ(plain: Model) -> None:
    def embedding(seed: int) -> torch.Tensor:
        return offgrid(plain, seed).decoder.embedding.dequantize()  # type: ignore[operator,no-any-return]

    assert torch.equal(embedding(1), embedding(1))
    assert not torch.equal(embedding(1), embedding(2))
    assert offgrid(plain, 1).version != offgrid(plain, 2).version


def test_bfloat16_view(plain: Model) -> None:
    view = offgrid(plain, dtype=torch.bfloat16)
    assert {linear.linear.label for linear in linears(view.decoder)} == {"bf16"}
    assert view.nbytes < plain.nbytes * 0.6


def test_a_group_is_on_the_grid_before_and_off_it_after(wide_heads: Model) -> None:
    plain = wide_heads
    for linear in linears(plain.decoder):
        plain.decoder.replace(linear.name, GroupLinear.requantize(linear.linear, 4, 32))
    view = offgrid(plain)
    for linear in linears(view.decoder):
        original = plain.decoder.get_submodule(linear.name)
        on = GroupLinear.requantize(original, 4, 32).dequantize() - original.dequantize()  # type: ignore[arg-type,operator]
        off = GroupLinear.requantize(linear.linear, 4, 32).dequantize() - linear.linear.dequantize()
        scale = linear.linear.dequantize().norm()
        assert on.norm() / scale < 1e-3, linear.name
        assert off.norm() / scale > 0.02, linear.name


def test_an_unknown_linear_is_refused(plain: Model) -> None:
    plain.decoder.layers[0].attention.extra = DenseLinear.from_weight(torch.zeros(4, 4))
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.extra"):
        offgrid(plain)
