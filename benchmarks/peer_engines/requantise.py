"""llama.cpp's requantisation of a GGUF file, in a process of its own: python -m … SOURCE KIND TARGET."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7}  # llama.cpp's numbers (llama_ftype)


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
