"""Tables of rows, vectors, and single weights on top: values, rows, bytes, products and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import ISAS, using
from tests.unit.kernels.native_plans import LLAMA, MIXTRAL, compile_plan, decoder, feed, tokens

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import (
    CodebookLinear,
    DenseLinear,
    GroupLinear,
    PackedLinear,
    RowTableLinear,
    SparseLinear,
    VectorLinear,
)
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig

SHAPES = [(16, 32), (37, 100), (70, 320)]
FUSED = ("avx512", "avx2")  # multiply and add as the contract of int8 products says


def random_of(shape: tuple[int, int]) -> np.random.Generator:
    return np.random.default_rng(shape[0])


def row_table(shape: tuple[int, int], bits: int) -> tuple[RowTableLinear, Floats]:
    """A layer, and its values written out."""
    random = random_of(shape)
    codes = random.integers(0, 1 << bits, shape, dtype=np.uint8)
    tables = random.integers(-127, 128, (shape[0], 1 << bits), dtype=np.int8)
    scales = (0.1 + random.random(shape[0])).astype(np.float16)
    exact = np.empty(shape, np.float32)
    for row in range(shape[0]):
        for column in range(shape[1]):
            exact[row, column] = np.float32(scales[row]) * tables[row, codes[row, column]]
    return RowTableLinear.from_codes(codes, tables, scales, bits), exact


def vectors(
    shape: tuple[int, int], length: int, bits: int, rest_bits: int, books: int = 1
) -> tuple[VectorLinear, Floats]:
    """A layer, and its values written out."""
    random, (rows, columns) = random_of(shape), shape
    count = -(-rows // length)
    main = random.standard_normal((books, 1 << bits, length)).astype(np.float16)
    rest = random.standard_normal((books, 1 << rest_bits, length)).astype(np.float16) if rest_bits else None
    codes = random.integers(0, 1 << bits, (count, columns))
    rest_codes = random.integers(0, 1 << rest_bits, (count, columns)) if rest_bits else None
    scales, offsets = (random.standard_normal(columns).astype(np.float16) for _ in range(2))
    own = random.integers(0, books, columns).astype(np.uint8) if books > 1 else None
    exact = np.empty(shape, np.float32)
    for row in range(rows):
        for column in range(columns):
            book, code = 0 if own is None else own[column], codes[row // length, column]
            value = np.float32(main[book, code, row % length])
            if rest is not None and rest_codes is not None:
                value += np.float32(rest[book, rest_codes[row // length, column], row % length])
            exact[row, column] = value * np.float32(scales[column]) + np.float32(offsets[column])
    return VectorLinear.from_codes(rows, codes, rest_codes, main, rest, scales, offsets, own), exact


def made(kind: str, shape: tuple[int, int]) -> tuple[PackedLinear, Floats]:
    if kind.startswith("lut"):
        return row_table(shape, int(kind[3:]))
    length, bits, rest_bits, books = map(int, kind[2:].split(","))
    return vectors(shape, length, bits, rest_bits, books)


KINDS = ["lut3", "lut4", "vq4,8,0,1", "vq8,8,8,1", "vq8,12,4,3", "vq4,4,12,1", "vq8,16,0,2"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_exact_and_come_back(kind: str, shape: tuple[int, int]) -> None:
    linear, exact = made(kind, shape)
    assert np.array_equal(linear.dequantize(), exact)
    indices = np.array([shape[0] - 1, 0, 3, 3])
    assert np.array_equal(linear.rows(indices), exact[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert type(again) is type(linear) and again.label == linear.label
    assert np.array_equal(again.dequantize(), exact)
    if dispatch.native() is not None:
        native = np.empty((4, shape[1]), np.float32)
        dispatch.require().linear_rows(dispatch.packed(linear), indices, native)
        assert np.array_equal(native, exact[indices])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_native_products_are_the_oracles(kind: str, shape: tuple[int, int], isa: str) -> None:
    linear, exact = made(kind, shape)
    x = np.random.default_rng(1).standard_normal((83, shape[1]), np.float32)
    with using(isa):
        product = dispatch.matmul(linear, x)
        for rows in (1, 2, 7, 12, 64, 75):
            assert np.array_equal(dispatch.matmul(linear, x[:rows]), product[:rows]), "a row depends on its neighbours"
    oracle = linear.oracle(x)  # type: ignore[attr-defined]
    if isa in FUSED:
        assert np.array_equal(product, oracle)
    np.testing.assert_allclose(product, oracle, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(product, linear.read(x).astype(np.float64) @ exact.T, rtol=1e-3, atol=1e-2)


def test_bytes_are_all_that_is_stored() -> None:
    shape = (64, 128)
    assert row_table(shape, 3)[0].nbytes == 64 * 128 * 3 // 8 + 64 * 8 + 64 * 2
    assert row_table(shape, 4)[0].nbytes == 64 * 128 // 2 + 64 * 16 + 64 * 2
    tables = (256 + 4096) * 8 * 2
    assert vectors(shape, 8, 8, 12)[0].nbytes == 64 * 128 // 8 * 20 // 8 + tables + 2 * 2 * 128
    base = GroupLinear.quantize(np.ones(shape, np.float32), 4, 32)
    chosen = np.zeros(shape, np.bool_)
    chosen[3, ::4] = True
    assert SparseLinear.over(base, np.ones(shape, np.float32), chosen).nbytes == base.nbytes + 32 * 4 + 65 * 4


BASES: dict[str, Callable[[Floats], PackedLinear]] = {
    "int4": lambda weight: GroupLinear.quantize(weight, 4, 32),
    "lut3": lambda weight: row_table(weight.shape, 3)[0],
    "vq8": lambda weight: vectors(weight.shape, 8, 8, 8)[0],
    "bf16": lambda weight: DenseLinear.from_weight(weight, BFLOAT16, packed=True),
    "f16": lambda weight: DenseLinear.from_weight(weight, np.float16),
    "table": lambda weight: CodebookLinear.from_codes(
        np.ones(weight.shape, np.uint8), np.ones((len(weight), 1), np.float32), np.arange(16, dtype=np.float32), 4, 512
    ),
}


def on_top(shape: tuple[int, int], base: str) -> tuple[SparseLinear, Floats]:
    """A layer with single weights, and its values; some rows have none, one has all."""
    random = random_of(shape)
    weight = random.standard_normal(shape, np.float32)
    chosen = random.random(shape) < 0.03
    chosen[1], chosen[2] = False, True
    stored = BASES[base](weight)
    held = stored.dequantize()
    values = np.where(chosen, (weight - held).astype(np.float16).astype(np.float32), 0)
    return SparseLinear.over(stored, weight, chosen), held + values


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", BASES)
def test_single_weights_are_added(base: str, shape: tuple[int, int]) -> None:
    linear, exact = on_top(shape, base)
    assert np.array_equal(linear.dequantize(), exact)
    indices = np.array([2, 1, shape[0] - 1, 2])
    assert np.array_equal(linear.rows(indices), exact[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, SparseLinear) and again.label == linear.label == f"{linear.base.label}+sparse"
    assert np.array_equal(again.dequantize(), exact)
    if dispatch.native() is not None:
        native = np.empty((4, shape[1]), np.float32)
        dispatch.require().linear_rows(dispatch.packed(linear), indices, native)
        np.testing.assert_allclose(native, exact[indices], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("isa", ISAS)
def test_native_products_with_single_weights_are_the_oracles(base: str, isa: str) -> None:
    linear, exact = on_top((37, 100), base)
    x = np.random.default_rng(1).standard_normal((21, 100), np.float32)
    with using(isa):
        product = dispatch.matmul(linear, x)
        for rows in (1, 2, 7, 12):
            assert np.array_equal(dispatch.matmul(linear, x[:rows]), product[:rows]), "a row depends on its neighbours"
    if isa in FUSED or base in ("f16", "table"):
        assert np.array_equal(product, linear.oracle(x))
    np.testing.assert_allclose(product, linear.base.read(x).astype(np.float64) @ exact.T, rtol=1e-3, atol=1e-2)


def stored_as(kind: str, weight: Floats, bias: Array | None) -> PackedLinear:
    """A weight as the format has it: single weights are the exact ones."""
    tables, scales = RowTableLinear.rounded_tables(np.sort(weight, axis=1)[:, :: max(1, weight.shape[1] // 16)][:, :16])
    codes = np.abs(weight[..., None] - (tables * scales[:, None].astype(np.float32))[:, None]).argmin(-1)
    linear: PackedLinear = RowTableLinear.from_codes(codes.astype(np.uint8), tables, scales, 4)
    if kind == "sparse":
        linear = SparseLinear.over(linear, weight, np.abs(weight) > np.quantile(np.abs(weight), 0.97))
    if kind == "vectors":
        linear = list(VectorLinear.examples(*weight.shape))[1]
    if bias is not None:
        linear.set_bias(bias)
    return linear


@pytest.mark.parametrize("kind", ["row_table", "sparse", "vectors"])
@pytest.mark.parametrize("config", [LLAMA, dataclasses.replace(MIXTRAL, mlp_bias=False)], ids=lambda one: one.family)
@torch.no_grad()
def test_a_plan_is_the_decoder_in_any_chunks(config: ModelConfig, kind: str) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model, ids = decoder(config, 32), tokens(40)
    for name, linear in list(model.model.linears.items()):
        if not name.endswith(".router"):
            model.replace(name, stored_as(kind, linear.dequantize(), linear.bias))
    for _, module in model.decoder.linears():
        if isinstance(module.stored, RowTableLinear | SparseLinear | VectorLinear):
            module.product = module.stored.oracle
    logits = feed(compile_plan(model, 32), config, ids, [20, 1, 1, 18], "f32")
    wanted = model(ids.long(), torch.arange(40), GrowingCache(config), 40)
    scale = float(wanted.abs().max())
    assert float((logits - wanted).abs().max()) < (1e-4 if kind == "vectors" else 2e-2) * scale
    assert torch.equal(feed(compile_plan(model, 32), config, ids, [1] * 40, "f32"), logits)


def test_tables_are_rounded_to_steps_of_their_largest() -> None:
    values = np.array([[-1.0, 0.5, 0.25, 0, 0, 0, 0, 2.54], [0] * 8], np.float32)
    tables, scales = RowTableLinear.rounded_tables(values)
    assert tables[0].tolist() == [-50, 25, 13, 0, 0, 0, 0, 127] or tables[0].tolist() == [-50, 25, 12, 0, 0, 0, 0, 127]
    assert scales.tolist() == [np.float16(0.02), 0] and not tables[1].any()
    with pytest.raises(KernelError, match="tables of rows has 1 NaN"):
        RowTableLinear.rounded_tables(np.array([[np.nan] * 1 + [0] * 7], np.float32))


def test_what_does_not_fit_is_named() -> None:
    table, _ = row_table((16, 32), 3)
    with pytest.raises(KernelError, match="codes of 3 or 4 bits, not 5"):
        RowTableLinear.from_codes(np.zeros((16, 32), np.uint8), table.tables[0], table.scales[0], 5)
    with pytest.raises(KernelError, match=r"a code is 8; 0 to 7 is allowed"):
        RowTableLinear.from_codes(np.full((16, 32), 8, np.uint8), table.tables[0], table.scales[0], 3)
    with pytest.raises(CheckpointError, match="'tables' is int8"):
        PackedLinear.from_state(table.meta() | {"bits": 4}, table.state() | {"codes": np.zeros((1, 1, 256), np.uint8)})
    vector, _ = vectors((16, 32), 4, 8, 0)
    with pytest.raises(KernelError, match="rows are 4 or 8, bits are 4, 8, 12 or 16"):
        VectorLinear.from_codes(16, np.zeros((2, 32), int), None, vector.main[:, :100], None, *[vector.scales] * 2)
    with pytest.raises(KernelError, match="a code is 0 to 256; 0 to 255 is allowed"):
        codes = np.full((4, 32), 256)
        codes[0] = 0
        VectorLinear.from_codes(16, codes, None, vector.main, None, vector.scales, vector.offsets)
    with pytest.raises(CheckpointError, match="a column has book 2 of 1"):
        PackedLinear.from_state(vector.meta(), vector.state() | {"books": np.full(32, 2, np.uint8)})


def test_native_code_names_what_does_not_fit() -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    table, (vector, _), (sparse, _) = (
        row_table((16, 32), 3)[0],
        vectors((16, 32), 4, 8, 0, 2),
        on_top((37, 100), "int4"),
    )

    def refused(linear: PackedLinear, message: str, **changes: object) -> None:
        stored = linear.native()
        assert stored is not None
        sizes = {"out_features": linear.out_features, "in_features": linear.in_features}
        with pytest.raises(ValueError, match=message):
            dispatch.require().Linear(layout=stored[0], **{**stored[1], **changes}, **sizes)

    refused(table, "table", table=table.tables.view(np.uint8)[:, :, :4].copy())
    refused(table, "has no minimums", minimums=table.scales)
    refused(vector, "a table of vectors has 16, 256", table=(vector.main[:, :100].copy(), None, None))
    refused(vector, "column 0 has book 2 of 2", table=(vector.main, None, np.full(32, 2, np.uint8)))
    refused(vector, "a tuple of main, rest and books", table=vector.main)
    starts, columns, values = sparse.starts, sparse.columns, sparse.values
    refused(sparse, "do not end at its last value", overlay=(starts, columns[1:].copy(), values[1:].copy()))
    refused(sparse, "is outside 0..99", overlay=(starts, np.full_like(columns, 100), values))
    broken = starts.copy()
    broken[1] = broken[-1] + 1
    refused(sparse, "do not follow each other", overlay=(broken, columns, values))


def test_single_weights_that_do_not_fit_are_named() -> None:
    linear, _ = on_top((37, 100), "int4")
    meta, state = linear.meta(), linear.state()
    for key, value, message in (
        ("starts", linear.starts[::-1].copy(), "'columns' is uint16"),
        ("starts", np.where(np.arange(38) == 1, 10000, linear.starts).astype(np.int32), "must begin at 0 and never"),
        ("columns", np.full_like(linear.columns, 100), r"'columns' has 100; 0\.\.99 is allowed"),
        ("values", linear.values.astype(np.float32), "'values' is float32"),
    ):
        with pytest.raises(CheckpointError, match=message):
            PackedLinear.from_state(meta, state | {key: value})
    with pytest.raises(CheckpointError, match="'base' is"):
        PackedLinear.from_state(meta | {"base": meta}, state)
    with pytest.raises(CheckpointError, match="'base' is"):
        PackedLinear.from_state(meta | {"base": 3}, state)
    with pytest.raises(KernelError, match="without such"):
        SparseLinear(linear, linear.starts, linear.columns, linear.values)
    with pytest.raises(KernelError, match="at most 65536 columns, this layer has 65568"):
        wide = np.zeros((1, 65568), np.float32)
        SparseLinear.over(DenseLinear.from_weight(wide), wide, wide == 0)
