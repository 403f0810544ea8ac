"""Half-precision activations times MARLIN's 4-bit weights (arXiv 2408.11743, §3.4), for 1 to 64 rows a pass.

A program holds all rows of a pass for 64 outputs. It reads each word of the weights once, as contiguous pieces of 512
bytes, turns it into halves in registers (a code in the mantissa of 1024 is 1024 + code, §3.4), and multiplies them by
all rows, so that the bytes of the weights are read once a pass however many rows there are. Triton's own pipelining
(`num_stages`) takes the place of MARLIN's cp.async stages. See `reference/marlin.py` for the order of the words.

Importing this module needs triton; its arguments are torch tensors on a GPU, or on the CPU with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from thrifty.errors import KernelError
from thrifty.kernels.reference.marlin import GROUP, check_sizes

ROWS = (16, 32, 64)  # of a pass
STAGES = 4  # tiles under way (§3.4: a pipeline of depth 4)


@triton.jit
def _product(
    x: Any,
    words: Any,
    scales: Any,
    y: Any,
    rows: Any,
    outputs: Any,
    columns: Any,
    pass_rows: tl.constexpr,
) -> None:
    """One pass of rows and one chunk of 64 outputs. All arrays are contiguous, as `marlin_matmul` checks."""
    row = tl.program_id(0) * pass_rows + tl.arange(0, pass_rows)
    chunk = tl.program_id(1)
    output = tl.arange(0, 64)
    place = output % 8 * 8 + output // 8  # of an output's scale
    inner = tl.arange(0, 128)
    shifts = tl.arange(0, 8) * 4
    tile = tl.arange(0, 8)  # of 16 columns
    total = tl.zeros((pass_rows, 64), dtype=tl.float32)
    for group in range(columns // 128):
        part = words + (group * 8 + tile[:, None]) * (2 * outputs) + chunk * 128 + inner[None, :]
        codes = (tl.load(part)[:, :, None] >> shifts[None, None, :]) & 15
        # [tile, n lane, k quarter, n tile, k odd, n half, k half] → [k, n]
        codes = tl.permute(tl.reshape(codes, (8, 8, 4, 4, 2, 2, 2)), (0, 6, 2, 4, 3, 5, 1))
        codes = tl.reshape(codes, (128, 64))
        values = (codes | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1032.0
        own = tl.load(x + row[:, None] * columns + group * 128 + inner[None, :], mask=row[:, None] < rows, other=0.0)
        scale = tl.load(scales + group * outputs + chunk * 64 + place).to(tl.float32)
        total += tl.dot(own, values.to(tl.float16)) * scale[None, :]
    at = y + row[:, None] * outputs + chunk * 64 + output[None, :]
    tl.store(at, total.to(tl.float16), mask=row[:, None] < rows)


def marlin_matmul(x: Any, words: Any, scales: Any) -> Any:
    """x fp16 [m, k] times weights in MARLIN's order (`reference.marlin.pack`) → fp16 [m, n], a tensor beside x.

    Groups are summed in fp32 and in order; a row's result does not depend on its neighbours within a pass size. Raises
    KernelError for shapes and types that do not fit.
    """
    outputs, columns = words.shape[1] // 2, words.shape[0] * 16
    check_sizes(outputs, columns)
    wanted = {
        "x": (x, "float16", (x.shape[0], columns)),
        "words": (words, "int32", (columns // 16, 2 * outputs)),
        "scales": (scales, "float16", (columns // GROUP, outputs)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        found = str(tensor.dtype).removeprefix("torch.")
        if found != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise KernelError(f"{name} is {found} {tuple(tensor.shape)}; it must be contiguous {dtype} {shape}")
    rows = int(x.shape[0])
    y = x.new_empty((rows, outputs))
    if rows:
        pass_rows = next((size for size in ROWS if size >= rows), ROWS[-1])
        grid = (triton.cdiv(rows, pass_rows), outputs // 64)
        _product[grid](x, words, scales, y, rows, outputs, columns, pass_rows=pass_rows, num_stages=STAGES)
    return y
