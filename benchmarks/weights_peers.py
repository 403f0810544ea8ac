"""Other people's quantisers on the same weights, as rows of docs/weights.md.

    .venv/bin/pip install llama-cpp-py-sync hqq

A peer rounds the uncompressed model's linears; embedding and logits stay in bf16, as Thrifty's techniques leave them.
What it made is then scored as every other row is, in Thrifty's engine against the same baseline, so that the rows
differ in the rounding alone.

- llama.cpp: its own `llama_model_quantize` on a GGUF file of the model, with an importance matrix where the kind's name
  ends in `+imatrix`: the mean squares of what each linear reads on the calibration text that Thrifty's techniques see.
  Matrices whose columns are no multiple of 256 do not take K-quants: llama.cpp gives them 5 or 8 bits by itself, which
  the row's bits show.
- hqq: the authors' package, on the processor.

GPTQModel and AutoAWQ come as source that wants a compiler for CUDA, llm-compressor loads folders in the format of
transformers alone: none of them is run here.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    return [*(f"llama.cpp:{kind}" for kind in (*kinds, *marked)), *(f"hqq-package:{bits}" for bits in (8, 4, 3, 2))]


def make(view: Model, name: str, threads: int | None) -> Peered:
    """The view's linears rounded by a peer. Raises PeerError where it is not installed or refuses."""
    peer, _, kind = name.partition(":")
    makers: Mapping[str, Callable[[Model, str, int], Peered]] = {"llama.cpp": _llama_cpp, "hqq-package": _hqq}
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


def quantize(source: Path, target: Path, kind: int, matrix: Mapping[str, Floats], threads: int) -> None:
    """llama.cpp's requantisation of a file; embedding and logits become bf16. Raises PeerError where it refuses."""
    bindings = _package("llama_cpp_py_sync._cffi_bindings", "llama-cpp-py-sync")
    library, ffi = bindings.get_lib(), bindings.get_ffi()
    parameters = ffi.new("llama_model_quantize_params *", library.llama_model_quantize_default_params())
    parameters.ftype, parameters.nthread = kind, threads
    parameters.token_embedding_type = parameters.output_tensor_type = GGML_BF16
    kept: list[Any] = []  # memory that llama.cpp reads
    if matrix:
        entries = ffi.new("struct llama_model_imatrix_data[]", len(matrix) + 1)  # the last one's name is null
        for place, (name, values) in enumerate(matrix.items()):
            kept += [ffi.new("char[]", name.encode()), ffi.new("float[]", values.tolist())]
            entries[place].name, entries[place].data, entries[place].size = kept[-2], kept[-1], len(values)
        parameters.imatrix = entries
        kept.append(entries)
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise PeerError(f"llama.cpp does not make a file of type {kind} of this model; its reason is above")


def _hqq(view: Model, kind: str, threads: int) -> Peered:
    hqq = _package("hqq.core.quantize", "hqq")
    import torch

    model = replace(view, linears=dict(view.linears), report=[], version=f"{view.version}+hqq-package({kind})")
    stored = numbers = 0
    seconds = 0.0
    for info in linears(view):
        if info.role in OUTSIDE + KEPT:
            continue
        weight = torch.from_numpy(info.linear.dequantize())
        began = time.perf_counter()
        codes, meta = hqq.Quantizer.quantize(
            weight, nbits=int(kind), group_size=HQQ_GROUP, axis=1, device="cpu", compute_dtype=torch.float32
        )
        seconds += time.perf_counter() - began
        back = hqq.Quantizer.dequantize(codes, meta).float().reshape(weight.shape).numpy()
        numbers += weight.numel()
        groups = meta["scale"].numel() + meta["zero"].numel()
        stored += int(kind) * weight.numel() + 16 * groups  # stored in fp16, as its files are
        model.linears[info.name] = DenseLinear.from_weight(back, BFLOAT16, packed=True, bias=info.linear.bias)
    outside = sum(own.linear.nbytes for own in linears(view) if own.role in OUTSIDE + KEPT)
    return Peered(model, outside + stored // 8, seconds, stored / numbers)


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerError(f"{name} is not here ({error}): pip install {name}") from error
