"""Rotation in torch: what it keeps, and that its tables are those of `models.rope`."""

from __future__ import annotations

import pytest
import torch

from thrifty.models import rope as arrays
from thrifty.models.config.model_config import RopeConfig, RopeScaling
from thrifty.reference.rotary import rotate, rotation

PLAIN = RopeConfig(10_000.0, 8)


def test_rotation_keeps_relative_positions() -> None:
    """q·k after rotation depends on the distance only, and lengths do not change."""
    query, key = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    products = []
    for start in (0, 5, 100):
        cos, sin = rotation(PLAIN, torch.tensor([start + 3]))
        cos_key, sin_key = rotation(PLAIN, torch.tensor([start]))
        turned = rotate(query, cos, sin)
        torch.testing.assert_close(turned.norm(), query.norm())
        products.append((turned * rotate(key, cos_key, sin_key)).sum())
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), atol=1e-5, rtol=0)


def test_half_split_convention() -> None:
    x = torch.arange(1.0, 9.0).reshape(1, 1, 8)
    quarter = torch.zeros(1, 4), torch.ones(1, 4)
    assert rotate(x, *quarter).flatten().tolist() == [-5, -6, -7, -8, 1, 2, 3, 4]


def test_channels_beyond_the_dimension_stay() -> None:
    x = torch.randn(3, 2, 12)
    cos, sin = rotation(PLAIN, torch.arange(3))
    assert torch.equal(rotate(x, cos, sin)[..., 8:], x[..., 8:])
    assert torch.equal(rotate(x, *rotation(RopeConfig(10_000.0, 0), torch.arange(3))), x)


@pytest.mark.parametrize("scaling", [None, RopeScaling("dynamic", 4.0, 64), RopeScaling("yarn", 4.0, 64)])
def test_the_tables_are_those_of_arrays_to_the_last_bit_or_one_beside_it(scaling: RopeScaling | None) -> None:
    config, positions = RopeConfig(100_000.0, 64, scaling), torch.arange(5000)
    for table, other in zip(rotation(config, positions), arrays.rotation(config, positions.numpy()), strict=True):
        assert (table - torch.from_numpy(other)).abs().max() < 1.2e-7
