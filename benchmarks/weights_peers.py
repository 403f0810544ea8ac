"""Other people's quantisers on the same weights, as rows of docs/weights.md.

    .venv/bin/pip install llama-cpp-python gguf hqq

A peer rounds the uncompressed model's linears; embedding and logits stay in bf16, as Thrifty's techniques leave them.
What it made is then scored as every other row is, in Thrifty's engine against the same baseline, so that the rows
differ in the rounding alone.

- llama.cpp: its own `llama_model_quantize` (llama-cpp-python) on a GGUF file of the model, with an importance matrix
  where the kind's name ends in `+imatrix`: the mean squares of what each linear reads on the calibration text that
  Thrifty's techniques see. Matrices whose columns are no multiple of 256 do not take K-quants: llama.cpp gives them 4
  to 8 bits by itself, which the row's bits show.
- gguf: the gguf package's NumPy quantisers of llama.cpp's plain types, computed with in bf16.
- hqq: the authors' package, on the processor.

GPTQModel and AutoAWQ come as source that wants a compiler for CUDA, llm-compressor loads folders in the format of
transformers alone: none of them is run here.
"""

from __future__ import annotations

import ctypes
import importlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import ThriftyError
from thrifty.formats.dense import DenseLinear
from thrifty.models.export.gguf import export_gguf
from thrifty.models.gguf.source import tensor_name
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.weights.calibration import default_calibration, seen
from thrifty.weights.structure import linears
from thrifty.weights.technique import KEPT, OUTSIDE

IMATRIX = "+imatrix"
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q4_K_S": 14,
    "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ4_XS": 30,
}  # fmt: skip
"""llama.cpp's numbers (llama_ftype)."""
GGML_BF16 = 30
GGUF_KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
HQQ_GROUP = 64


class PeerError(ThriftyError):
    """A peer is not installed, or does not do what is asked."""


@dataclass(frozen=True)
class Peered:
    """What a peer made. bits: a weight inside the layers, with all that it stores; None: as the model's own say.
    nbytes: of the whole model as it stores it. seconds: of the rounding alone.
    """

    model: Model
    nbytes: int
    seconds: float
    bits: float | None = None


def names() -> list[str]:
    """Every peer and kind, as rows are called."""
    kinds = [kind for kind in FILE_TYPES if not kind.startswith(("IQ3", "Q2_K"))]
    marked = [f"{kind}{IMATRIX}" for kind in FILE_TYPES if kind not in ("Q8_0",)]
    return [
        *(f"llama.cpp:{kind}" for kind in (*kinds, *marked)),
        *(f"gguf:{kind}" for kind in GGUF_KINDS),
        *(f"hqq-package:{bits}" for bits in (8, 4, 3, 2)),
    ]


def make(view: Model, name: str, threads: int | None) -> Peered:
    """The view's linears rounded by a peer. Raises PeerError where it is not installed or refuses."""
    peer, _, kind = name.partition(":")
    makers: Mapping[str, Callable[[Model, str, int], Peered]] = {
        "llama.cpp": _llama_cpp,
        "gguf": _gguf,
        "hqq-package": _hqq,
    }
    if peer not in makers:
        raise PeerError(f"no peer '{peer}'; there are {', '.join(makers)}")
    return makers[peer](view, kind, threads or 1)


def _llama_cpp(view: Model, kind: str, threads: int) -> Peered:
    matrix = importance(view) if kind.endswith(IMATRIX) else {}
    with tempfile.TemporaryDirectory(prefix="weights-peers-") as folder:
        plain, made = Path(folder) / "plain.gguf", Path(folder) / "made.gguf"
        export_gguf(view, plain)
        began = time.perf_counter()
        quantize(plain, made, FILE_TYPES[kind.removesuffix(IMATRIX)], matrix, threads)
        seconds = time.perf_counter() - began
        nbytes = made.stat().st_size
        model = load(made, threads=threads, copy=False)
        for name, linear in model.linears.items():  # nothing stays mapped from the folder
            model.linears[name] = type(linear).from_state(
                linear.meta(), {key: np.array(value) for key, value in linear.state().items()}
            )
        return Peered(replace(model, path=None, file=None), nbytes, seconds)


def importance(view: Model) -> dict[str, Floats]:
    """By the GGUF file's names of tensors the mean squares of what each column reads, fp32 [in_features]."""
    shown = seen(view, default_calibration(view), "an importance matrix")
    found: dict[str, Floats] = {}
    for info in linears(view):
        tensor = tensor_name(info.name)
        if info.role in OUTSIDE + KEPT or tensor is None:
            continue
        found[tensor] = np.square(shown(info).inputs, dtype=np.float32).mean(axis=0)
    return found


class _Matrix(ctypes.Structure):
    """llama.cpp's `llama_model_imatrix_data`."""

    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def quantize(source: Path, target: Path, kind: int, matrix: Mapping[str, Floats], threads: int) -> None:
    """llama.cpp's requantisation of a file; embedding and logits become bf16. Raises PeerError where it refuses."""
    llama_cpp = _package("llama_cpp", "llama-cpp-python")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind, threads
    parameters.token_embedding_type = parameters.output_tensor_type = GGML_BF16
    held = {name: np.ascontiguousarray(values, np.float32) for name, values in matrix.items()}
    entries = (_Matrix * (len(held) + 1))()  # the last one's name is null
    for entry, (name, values) in zip(entries, held.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if held:
        parameters.imatrix = ctypes.cast(entries, dict(parameters._fields_)["imatrix"])
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise PeerError(f"llama.cpp does not make a file of type {kind} of this model; its reason is above")


def _gguf(view: Model, kind: str, threads: int) -> Peered:
    quants, gguf = _package("gguf.quants", "gguf"), _package("gguf", "gguf")
    type_ = gguf.GGMLQuantizationType[kind]

    def rounded(weight: Floats) -> tuple[Floats, int]:
        blocks = quants.quantize(weight, type_)
        return quants.dequantize(blocks, type_), blocks.nbytes

    return _rounded(view, f"gguf({kind})", rounded)


def _hqq(view: Model, kind: str, threads: int) -> Peered:
    hqq = _package("hqq.core.quantize", "hqq")
    import torch

    def rounded(weight: Floats) -> tuple[Floats, int]:
        codes, meta = hqq.Quantizer.quantize(
            torch.from_numpy(weight),
            nbits=int(kind),
            group_size=HQQ_GROUP,
            axis=1,
            device="cpu",
            compute_dtype=torch.float32,
        )
        back = hqq.Quantizer.dequantize(codes, meta).float().reshape(weight.shape).numpy()
        groups = meta["scale"].numel() + meta["zero"].numel()  # in fp16, as its files have them
        return back, int(kind) * weight.size // 8 + 2 * groups

    return _rounded(view, f"hqq-package({kind})", rounded)


def _rounded(view: Model, name: str, rounded: Callable[[Floats], tuple[Floats, int]]) -> Peered:
    """Linears replaced by what a peer makes of their weights [out, in], computed with in bf16. rounded: the weights
    that it stands for, and the bytes that it stores.
    """
    model = replace(view, linears=dict(view.linears), report=[], version=f"{view.version}+{name}")
    stored = numbers = 0
    seconds = 0.0
    for info in linears(view):
        if info.role in OUTSIDE + KEPT:
            continue
        weight = np.array(info.linear.dequantize())
        began = time.perf_counter()
        back, nbytes = rounded(weight)
        seconds += time.perf_counter() - began
        numbers, stored = numbers + weight.size, stored + nbytes
        model.linears[info.name] = DenseLinear.from_weight(back, BFLOAT16, packed=True, bias=info.linear.bias)
    outside = sum(own.linear.nbytes for own in linears(view) if own.role in OUTSIDE + KEPT)
    return Peered(model, outside + stored, seconds, 8 * stored / numbers)


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerError(f"{name} is not here ({error}): pip install {name}") from error
