"""llama.cpp's requantisation of a GGUF file, in a process of its own: python -m … SOURCE KIND TARGET."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# llama.cpp's numbers (llama_ftype)
FILE_TYPES = {
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}


def requantise(source: Path, kind: str, target: Path, threads: int = 2) -> None:
    """Write `source` with linears of `kind` to `target`, atomically. Raises ValueError where llama.cpp refuses."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = FILE_TYPES[kind], True, threads
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters)):
            raise ValueError(f"llama.cpp does not requantise {source} to {kind}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    requantise(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
