"""Every type of a GGUF file natively: its bits re-ordered and back, its products and rows against a slow oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.kernels.file_rows import TYPES, decode, product, random_rows
from tests.unit.kernels.native_pages import EXACT, ISAS, native, normal, using

from thrifty.arrays import Array, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

PRODUCTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64)


def arrays(kind: str, rows: int, columns: int) -> dict[str, Array | None]:
    """Codes, scales and minimums of a layer, full of ones."""
    known, tiles, blocks = TYPES[kind], -(-rows // 16), columns // TYPES[kind].columns
    scales = np.full((tiles, blocks, 16), 7, np.float16)
    minimums = None if known.minimum is None else scales.copy()
    return {"codes": np.full((tiles, blocks, known.code_bytes), 255, np.uint8), "scales": scales, "minimums": minimums}


def repacked(kind: str, raw: Bytes) -> dict[str, Array | None]:
    made = arrays(kind, len(raw), raw.shape[1] // TYPES[kind].size * TYPES[kind].columns)
    dispatch.repack(kind, raw, **made)  # type: ignore[arg-type]
    return made


def linear(kind: str, raw: Bytes) -> Any:
    known = TYPES[kind]
    sizes = {"out_features": len(raw), "in_features": raw.shape[1] // known.size * known.columns}
    group = 0 if known.sub_columns else 32
    return native().Linear(layout=known.layout, **repacked(kind, raw), **sizes, group=group)


def multiply(module: Any, held: Any, x: Floats) -> Floats:
    y = np.empty((len(x), held.out_features), np.float32)
    module.matmul(held, x, y)
    return y


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_products_of_any_number_of_rows(kind: str, isa: str) -> None:
    """Three tiles, the last of them part full, and more rows than stay in registers."""
    raw, x = random_rows(kind, 41, 512), normal(64, 512, seed=3)
    x[5, 32:64] = 0
    wanted = product(kind, raw, x)
    with using(isa) as module:
        held = linear(kind, raw)
        found = {count: multiply(module, held, x[:count]) for count in PRODUCTS}
    together = found[64]
    if isa in EXACT:
        assert np.array_equal(together, wanted)
    else:
        np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))
    assert all(np.array_equal(y, together[:count]) for count, y in found.items())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_products_at_the_limits_of_codes(kind: str, isa: str) -> None:
    """All bits set and all clear, activations at their limit in both signs: where narrow sums would overflow."""
    known = TYPES[kind]
    raw = np.repeat(random_rows(kind, 2, 256), 9, axis=0).reshape(18, -1, known.size)
    scale = raw[:, :, known.scale : known.scale + 2].copy()
    raw[:9], raw[9:] = 0, 255
    for at in (known.scale, known.minimum):
        if at is not None:
            raw[:, :, at : at + 2] = scale
    raw = raw.reshape(18, -1)
    x = np.full((9, 256), 127, np.float32) * np.where(np.arange(9) % 2, 1, -1)[:, None].astype(np.float32)
    with using(isa) as module:
        found = multiply(module, linear(kind, raw), x)
    np.testing.assert_allclose(found, product(kind, raw, x), rtol=0 if isa in EXACT else 1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_for_an_embedding_are_the_values_of_the_file(kind: str) -> None:
    raw = random_rows(kind, 35, 256)
    wanted = decode(kind, raw).weights(TYPES[kind])
    module = native()
    held, found = linear(kind, raw), np.empty((35, 256), np.float32)
    module.linear_rows(held, np.arange(35), found)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 16, 41])
def test_bits_come_back(kind: str, rows: int) -> None:
    raw = random_rows(kind, rows, 768, seed=rows)
    wide = np.zeros((rows, raw.shape[1] + 3), np.uint8)
    wide[:, : raw.shape[1]] = raw  # rows that lie apart, as in a file
    made, back = repacked(kind, wide[:, : raw.shape[1]]), np.empty_like(raw)
    dispatch.unpack(kind, raw=back, **made)  # type: ignore[arg-type]
    assert np.array_equal(back, raw)
    lanes = -rows % 16
    if lanes:
        assert not made["scales"][-1, :, 16 - lanes :].any()  # type: ignore[index]


def test_bf16_pairs_come_back() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (21, 2 * 7), np.uint8)
    codes, back = np.full((2, 4, 16, 2), 9, np.uint16), np.empty_like(raw)
    dispatch.repack("BF16", raw, codes)
    assert np.array_equal(codes[1, :, 4, 0], raw[20].view(np.uint16)[::2])
    assert not codes[:, 3, :, 1].any()
    assert not codes[1, :, 5:].any()
    dispatch.unpack("BF16", codes, None, None, back)
    assert np.array_equal(back, raw)


def test_what_repack_refuses() -> None:
    native()
    raw, made = random_rows("Q4_K", 16, 512), arrays("Q4_K", 16, 512)
    with pytest.raises(KernelError, match="no linear layout holds the type 'IQ2_XS'; known: Q4_0"):
        dispatch.repack("IQ2_XS", raw, **made)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="rows of 143 bytes are not whole blocks of Q4_K, of 144 bytes each"):
        dispatch.repack("Q4_K", raw[:, :143], **made)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"records is uint8 \(1, 2, 2240\), expected uint8 \(1, 2, 3328\)"):
        dispatch.repack("Q6_K", random_rows("Q6_K", 16, 512), **made)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="Q4_0 has no minimums: give None"):
        dispatch.repack("Q4_0", random_rows("Q4_0", 16, 64), **arrays("Q4_1", 16, 64))  # type: ignore[arg-type]


def test_what_a_native_linear_refuses() -> None:
    module, sizes = native(), {"out_features": 16, "in_features": 256}
    made = repacked("Q4_K", random_rows("Q4_K", 16, 256))
    with pytest.raises(ValueError, match="linear layout 'q7_k' is unknown; known: int4, int5"):
        module.Linear(layout="q7_k", **made, **sizes)
    with pytest.raises(ValueError, match="q4_k has columns in whole superblocks of 256, not 224"):
        module.Linear(layout="q4_k", **made, out_features=16, in_features=224)
    with pytest.raises(ValueError, match="q4_k needs minimums"):
        module.Linear(layout="q4_k", **{**made, "minimums": None}, **sizes)
    six = repacked("Q6_K", random_rows("Q6_K", 16, 256))
    with pytest.raises(ValueError, match="q6_k has no minimums"):
        module.Linear(layout="q6_k", **{**six, "minimums": made["minimums"]}, **sizes)


@pytest.mark.parametrize(
    ("layout", "options", "what"),
    [
        ("f16", {"minimums": np.zeros((1, 1, 16), np.float16)}, "minimums"),
        ("bf16", {"scales": np.zeros((1, 1, 16), np.float16)}, "scales"),
        ("int5", {"zeros": np.zeros((1, 1, 16), np.uint8)}, "zero points"),
        ("int4", {"table": np.zeros(16, np.float32)}, "table"),
        ("table4", {"table": np.zeros(16, np.float32), "zeros": np.zeros((1, 1, 16), np.uint8)}, "zero points"),
    ],
)
def test_what_a_layout_does_not_read_is_refused(layout: str, options: dict[str, Array], what: str) -> None:
    codes, sizes = np.zeros(1, np.uint8), {"out_features": 16, "in_features": 32, "group": 32}
    with pytest.raises(ValueError, match=f"a linear of layout {layout} has no {what}"):
        native().Linear(layout=layout, codes=codes, **options, **sizes)
