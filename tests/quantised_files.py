"""Linears as the packages of quantisation store them, of random bytes, and what each of their weights is: read bit by
bit from the definition of the layout, one weight at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint import write_checkpoint
from torch import Tensor

Tensors = dict[str, Tensor]
Make = Callable[[np.random.Generator, int, int], Tensors]
Weight = Callable[[Tensors, int, int], float]
AWQ_PLACES = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # column of eight -> its four bits of a word


@dataclass(frozen=True)
class Layout:
    """`make` gives the tensors of a linear of so many rows and columns, `weight` one of its weights."""

    config: dict[str, Any]
    make: Make
    weight: Weight
    rounded: bool = False  # whether scales are rounded to fp16
    fields: dict[str, Any] = field(default_factory=dict)


def bits_of(words: Tensor, index: tuple[int, int], place: int, bits: int) -> int:
    """Code `place`, counted from the lowest bits, of a word of int32."""
    return int(words[index]) % (1 << 32) >> (bits * place) & ((1 << bits) - 1)


def words(random: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(random.integers(-(1 << 31), 1 << 31, shape).astype(np.int32))


def scales(random: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float16, size: float = 0.02) -> Tensor:
    return torch.from_numpy((size * (0.5 + random.random(shape))).astype(np.float32)).to(dtype)


def gptq(bits: int, group: int, version: int = 1, zeros: bool = True) -> Layout:
    per = 32 // bits

    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        size = columns if group == -1 else min(group, columns)
        middle = sum(((1 << (bits - 1)) - (version == 1)) << bits * place for place in range(per))
        all_middle = torch.full((columns // size, rows // per), middle - (1 << 32 if middle >= 1 << 31 else 0))
        return {
            "qweight": words(random, columns // per, rows),
            "qzeros": words(random, columns // size, rows // per) if zeros else all_middle.to(torch.int32),
            "scales": scales(random, columns // size, rows, size=0.3 / (1 << bits)),
            "g_idx": (torch.arange(columns) // size).to(torch.int32),
        }

    def weight(tensors: Tensors, row: int, column: int) -> float:
        of = int(tensors["g_idx"][column])
        stored = int(tensors["qzeros"][of, row // per]) & 0xFFFFFFFF
        if version == 1:  # GPTQModel adds 1 to all codes of a word as one number: convert_gptq_v1_to_v2_format
            stored = (stored + {4: 0x11111111, 8: 0x01010101}[bits]) & 0xFFFFFFFF
        zero = stored >> bits * (row % per) & (1 << bits) - 1
        code = bits_of(tensors["qweight"], (column // per, row), column % per, bits)
        return float(tensors["scales"][of, row]) * (code - zero)

    form = "gptq" if version == 1 else "gptq_v2"
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form, "desc_act": False}
    return Layout(config, make, weight)


def awq(group: int) -> Layout:
    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        return {
            "qweight": words(random, columns, rows // 8),
            "qzeros": words(random, columns // group, rows // 8),
            "scales": scales(random, columns // group, rows),
        }

    def weight(tensors: Tensors, row: int, column: int) -> float:
        place = AWQ_PLACES[row % 8]
        code = bits_of(tensors["qweight"], (column, row // 8), place, 4)
        zero = bits_of(tensors["qzeros"], (column // group, row // 8), place, 4)
        return float(tensors["scales"][column // group, row]) * (code - zero)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Layout(config, make, weight)


def packed(bits: int, group: int, zeros: bool = False, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """compressed-tensors, pack-quantized."""
    per = 32 // bits

    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        groups = 1 if group == -1 else columns // group
        made = {
            "weight_packed": words(random, rows, columns // per),
            "weight_scale": scales(random, rows, groups, dtype=dtype, size=0.3 / (1 << bits)),
            "weight_shape": torch.tensor([rows, columns]),
        }
        return made | ({"weight_zero_point": words(random, rows // per, groups)} if zeros else {})

    def weight(tensors: Tensors, row: int, column: int) -> float:
        of = 0 if group == -1 else column // group
        zero = bits_of(tensors["weight_zero_point"], (row // per, of), row % per, bits) if zeros else 1 << (bits - 1)
        code = bits_of(tensors["weight_packed"], (row, column // per), column % per, bits)
        return float(tensors["weight_scale"][row, of]) * (code - zero)

    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros, "group_size": group}
    return Layout(compressed("pack-quantized", weights), make, weight, rounded=dtype == torch.float32)


def int8(one: bool = False) -> Layout:
    """compressed-tensors, int-quantized: a scale for each row, or for all."""

    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        codes = torch.from_numpy(random.integers(-128, 128, (rows, columns)).astype(np.int8))
        shape = (1,) if one else (rows, 1)
        scale = scales(random, *shape, dtype=torch.bfloat16, size=0.002)
        return {"weight": codes, "weight_scale": scale, "input_scale": torch.ones(1)}

    def weight(tensors: Tensors, row: int, column: int) -> float:
        scale = tensors["weight_scale"]
        return float(scale[0] if one else scale[row, 0]) * int(tensors["weight"][row, column])

    return Layout(compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}), make, weight)


def float8(kind: str, method: str = "compressed-tensors") -> Layout:
    """FP8: a scale for all ("tensor"), for each row ("channel"), or for each block of 128 x 128 ("block")."""
    name = "weight_scale_inv" if method == "fp8" else "weight_scale"

    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
        codes[codes % 128 > 120] = 0  # neither huge nor NaN
        shapes = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // 128), -(-columns // 128))}
        scale = scales(random, *shapes[kind], dtype=torch.float32, size=0.002)
        return {"weight": torch.from_numpy(codes).view(torch.float8_e4m3fn), name: scale}

    def weight(tensors: Tensors, row: int, column: int) -> float:
        byte = int(tensors["weight"].view(torch.uint8)[row, column])
        sign, exponent, mantissa = -1 if byte >> 7 else 1, byte >> 3 & 15, byte & 7
        value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        place = {"tensor": (0,), "channel": (row, 0), "block": (row // 128, column // 128)}[kind]
        return float(tensors[name][place]) * sign * value

    config = compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": kind})
    if method == "fp8":
        config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return Layout(config, make, weight)


def bitsandbytes(kind: str, double: bool, block: int = 64) -> Layout:
    def make(random: np.random.Generator, rows: int, columns: int) -> Tensors:
        blocks = rows * columns // block
        state: dict[str, Any] = {
            "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, columns],
        }  # fmt: skip
        table = torch.from_numpy(np.sort(random.normal(size=16)).astype(np.float32))
        made = {
            "weight": torch.from_numpy(random.integers(0, 256, (rows * columns // 2, 1), dtype=np.uint8)),
            "weight.quant_map": table,
        }
        if double:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.03}
            made["weight.absmax"] = torch.from_numpy(random.integers(0, 256, blocks, dtype=np.uint8))
            made["weight.nested_absmax"] = scales(random, -(-blocks // 256), dtype=torch.float32)
            made["weight.nested_quant_map"] = torch.from_numpy(random.uniform(-1, 1, 256).astype(np.float32))
        else:
            made["weight.absmax"] = scales(random, blocks, dtype=torch.float32, size=0.1)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        return made | {f"weight.quant_state.bitsandbytes__{kind}": torch.from_numpy(text)}

    def weight(tensors: Tensors, row: int, column: int) -> float:
        columns = json.loads(bytes(tensors[f"weight.quant_state.bitsandbytes__{kind}"].tolist()))["shape"][1]
        index = row * columns + column
        byte = int(tensors["weight"][index // 2, 0])
        value = np.float32(tensors["weight.quant_map"][byte & 15 if index % 2 else byte >> 4])
        stored = tensors["weight.absmax"][index // block]
        if not double:
            return float(value * np.float32(stored))
        nested = np.float32(tensors["weight.nested_absmax"][index // block // 256])
        absmax = np.float32(tensors["weight.nested_quant_map"][int(stored)]) * nested + np.float32(0.03)
        return float(value * absmax)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Layout(config, make, weight)


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "sparsity_config": {},
    }


LAYOUTS: dict[str, Layout] = {
    **{f"gptq4-g{group}": gptq(4, group) for group in (32, 64, 128, -1)},
    "gptq4-g256": gptq(4, 256),
    "gptq4-symmetric": gptq(4, 128, zeros=False),
    "gptq4-version-2": gptq(4, 128, version=2),
    "gptq8": gptq(8, 128),
    "gptq8-symmetric": gptq(8, -1, zeros=False),
    "awq-g128": awq(128),
    "awq-g32": awq(32),
    "w4a16": packed(4, 128),
    "w4a16-rows": packed(4, -1, dtype=torch.float16),
    "w4a16-zeros": packed(4, 64, zeros=True),
    "w8a16": packed(8, 32),
    "w4a16-fp32-scales": packed(4, 128, dtype=torch.float32),
    "w8a8": int8(),
    "w8a8-one-scale": int8(one=True),
    "fp8-tensor": float8("tensor"),
    "fp8-channel": float8("channel"),
    "fp8-block": float8("block"),
    "fp8-fine": float8("block", "fp8"),
    "nf4": bitsandbytes("nf4", double=False),
    "nf4-double": bitsandbytes("nf4", double=True),
    "fp4": bitsandbytes("fp4", double=False, block=128),
}


def write(folder: Path, layout: Layout, change: Callable[[Tensors], None] | None = None) -> Path:
    """The tiny checkpoint of `tests.checkpoint`, its linears quantised: of random bytes. `change` is shown each."""
    write_checkpoint(folder)
    random, path = np.random.default_rng(0), folder / "model.safetensors"
    made: Tensors = {}
    for name, tensor in load_file(path).items():
        if not name.endswith("_proj.weight"):
            made[name] = tensor
            continue
        tensors = layout.make(random, *tensor.shape)
        if change is not None:
            change(tensors)
        made |= {f"{name.removesuffix('.weight')}.{member}": values for member, values in tensors.items()}
    save_file({name: values.contiguous() for name, values in made.items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": layout.config} | layout.fields))
    return folder
