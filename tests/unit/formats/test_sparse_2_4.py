"""Two of every four columns: values, masks, rows, bytes and products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import EXACT, ISAS, native, normal, using
from tests.unit.kernels.native_plans import LLAMA, compile_plan, decoder, feed, tokens

from thrifty.arrays import BFLOAT16, Flags, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import PackedLinear, Sparse24Linear
from thrifty.formats.sparse_2_4 import Values
from thrifty.kernels import dispatch
from thrifty.kernels.reference.sparse_2_4 import CANDIDATES, largest_two, pack, places, unpack

KINDS: list[tuple[Values, int]] = [("bf16", 32), ("int8", 32), ("int8", 128), ("int4", 32), ("int4", 64)]
SHAPES = [(16, 32), (37, 100), (70, 384), (1, 4)]


def masks(rows: int, columns: int, seed: int = 0) -> Flags:
    """Any of the six masks in every group."""
    chosen = np.random.default_rng(seed).integers(0, len(CANDIDATES), (rows, columns // 4))
    return CANDIDATES[chosen].reshape(rows, columns)


def made(rows: int, columns: int, values: Values, group: int) -> tuple[Sparse24Linear, Floats, Flags]:
    """A layer, the weights it was made of, and its mask."""
    weight, mask = normal(rows, columns), masks(rows, columns)
    return Sparse24Linear.from_weight(weight, mask, values, group), weight, mask


def expected(weight: Floats, mask: Flags, values: Values, group: int) -> Floats:
    """What a layer holds, number by number."""
    kept = np.where(mask, weight, np.float32(0))
    if values == "bf16":
        return kept.astype(BFLOAT16).astype(np.float32)
    found = np.zeros_like(kept)
    for row in range(len(kept)):
        for first in range(0, kept.shape[1], group):
            own = kept[row, first : first + group]
            extreme = own[np.abs(own).argmax()]
            scale = np.float32(np.float16(abs(extreme) / 127 if values == "int8" else extreme / -8))
            low, high = (-127, 127) if values == "int8" else (-8, 7)
            found[row, first : first + group] = scale * np.clip(np.rint(own / (scale or 1)), low, high)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("values", "group"), KINDS)
def test_what_is_kept_is_rounded_and_all_else_is_zero(values: Values, group: int, shape: tuple[int, int]) -> None:
    linear, weight, mask = made(*shape, values, group)
    dense = linear.dequantize()
    np.testing.assert_allclose(dense, expected(weight, mask, values, group), rtol=1e-6, atol=1e-7)
    assert not dense[~mask].any() and np.array_equal(linear.mask(), mask)
    indices = np.array([shape[0] - 1, 0, shape[0] // 2, 0])
    assert np.array_equal(linear.rows(indices), dense[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, Sparse24Linear) and np.array_equal(again.dequantize(), dense)


@pytest.mark.parametrize(("values", "bits"), [("bf16", 9.0), ("int8", 5.5), ("int4", 3.5)])
def test_bytes_are_those_of_the_kept_numbers_masks_and_scales(values: Values, bits: float) -> None:
    linear, _, _ = made(64, 256, values, 32)
    assert 8 * linear.nbytes / (64 * 256) == bits


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_packing_can_be_undone(bits: int) -> None:
    mask, random = masks(32, 64), np.random.default_rng(1)
    numbers = random.integers(0, 1 << bits, (32, 32)).astype(np.uint16 if bits == 16 else np.uint8)
    found, kept = unpack(pack(numbers, mask, bits), bits)
    assert np.array_equal(found, numbers) and np.array_equal(kept, mask)
    assert np.array_equal(np.take_along_axis(mask, places(mask), axis=1), np.ones((32, 32), bool))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("values", "group"), KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_native_products_are_the_oracles_for_any_number_of_rows(
    isa: str, values: Values, group: int, shape: tuple[int, int]
) -> None:
    linear, _, _ = made(*shape, values, group)
    x = normal(70, shape[1], seed=3)
    oracle = linear.oracle(x)
    with using(isa):
        together = dispatch.matmul(linear, x)
        if values == "bf16" or isa in EXACT:
            assert np.array_equal(together, oracle)
        else:
            np.testing.assert_allclose(together, oracle, rtol=1e-5, atol=1e-5 * float(np.abs(oracle).max()))
        for rows in (1, 2, 3, 5, 8, 33):
            assert np.array_equal(dispatch.matmul(linear, x[:rows]), together[:rows])


@pytest.mark.parametrize("isa", ISAS)
def test_codes_and_activations_at_their_limits_do_not_overflow(isa: str) -> None:
    for values, codes in (("int8", (-127, 127)), ("int4", (-8, 7))):
        for code in codes:
            weight = np.full((16, 64), code, np.float32)
            linear = Sparse24Linear.from_weight(weight, masks(16, 64), values, 32)  # type: ignore[arg-type]
            for sign in (1.0, -1.0):
                x = np.full((3, 64), sign * 127.0, np.float32)
                with using(isa):
                    np.testing.assert_allclose(dispatch.matmul(linear, x), linear.oracle(x), rtol=1e-6)


@pytest.mark.parametrize(("values", "group"), KINDS)
def test_rows_for_an_embedding_are_the_same_natively(values: Values, group: int) -> None:
    linear, _, _ = made(37, 100, values, group)
    found, module = np.empty((37, 100), np.float32), native()
    module.linear_rows(dispatch.packed(linear), np.arange(37), found)
    assert np.array_equal(found, linear.dequantize())


@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
@torch.no_grad()
def test_a_plan_is_the_decoder(values: Values) -> None:
    native()
    model, ids = decoder(LLAMA, 32), tokens(40)
    for name, linear in list(model.model.linears.items()):
        if name.startswith("layers."):
            weight = linear.dequantize()
            mask = largest_two(np.abs(weight))
            model.replace(name, Sparse24Linear.from_weight(weight, mask, values, bias=linear.bias))
    logits = feed(compile_plan(model, 32), LLAMA, ids, [20, 1, 1, 18], "f32")
    for _, module in model.linears():
        if isinstance(module.stored, Sparse24Linear):
            module.product = module.stored.oracle
    wanted = model(ids.long(), torch.arange(40), GrowingCache(LLAMA), 40)
    error, size = (logits - wanted).abs(), float(wanted.abs().mean())
    assert float(error.mean()) < 0.03 * size and float(error.max()) < size


def test_what_does_not_fit_is_named() -> None:
    weight, mask = normal(4, 8), masks(4, 8)
    with pytest.raises(KernelError, match="6 columns are not whole fours: leave this layer out"):
        Sparse24Linear.from_weight(normal(4, 6), np.ones((4, 6), bool))
    wrong = mask.copy()
    wrong[2, 4:] = True
    with pytest.raises(KernelError, match="the mask keeps 4 of columns 4 to 7 of row 2; it must keep 2 of every 4"):
        Sparse24Linear.from_weight(weight, wrong)
    with pytest.raises(KernelError, match="'int8' in groups of 16 do not exist: values are bf16 without groups"):
        Sparse24Linear.from_weight(weight, mask, "int8", 16)
    weight[1, mask[1]] = np.nan
    with pytest.raises(KernelError, match=r"weight rows 0..3 has 4 NaN or infinite value"):
        Sparse24Linear.from_weight(weight, mask)
    linear = Sparse24Linear.from_weight(normal(4, 8), mask)
    with pytest.raises(CheckpointError, match="linear field 'values' is 'int3'; expected one of bf16, int8, int4"):
        PackedLinear.from_state(linear.meta() | {"values": "int3"}, linear.state())
    with pytest.raises(CheckpointError, match="2:4 values in bf16 have no scales"):
        PackedLinear.from_state(linear.meta(), linear.state() | {"scales": np.zeros((1, 1, 16), np.float16)})


def test_a_damaged_mask_gives_the_same_wrong_numbers_everywhere() -> None:
    linear, _, _ = made(16, 32, "int8", 32)
    codes = linear.codes.copy()
    codes[..., :64] = np.random.default_rng(5).integers(0, 256, 64, dtype=np.uint8)
    damaged = Sparse24Linear(16, 32, "int8", 32, codes, linear.scales)
    x = normal(3, 32, seed=1)
    assert damaged.dequantize().shape == (16, 32)
    for isa in EXACT:
        with using(isa):
            assert np.array_equal(dispatch.matmul(damaged, x), damaged.oracle(x))
