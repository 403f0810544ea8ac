"""What must be there before anything is timed: engines, files, the reference, the bandwidth."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.processes import WorkerError, WorkerProcess
from benchmarks.comparison.session import Note
from benchmarks.comparison.sleeping import ROOT, environment
from benchmarks.comparison.variants import LLAMA, MISTRAL, OPENVINO, SHIPPED, THRIFTY, TRANSFORMERS, Variant

MODULES = {
    THRIFTY: ("thrifty.kernels.native._native",),
    LLAMA: ("llama_cpp",),
    OPENVINO: ("openvino_genai",),
    MISTRAL: ("mistralrs",),
    TRANSFORMERS: ("transformers", "accelerate", "gguf"),
}
PATIENCE = 600.0


def check_installed(engines: Sequence[str]) -> None:
    """Raise SystemExit naming what is missing and how it gets here."""
    for engine in engines:
        for module in MODULES[engine]:
            if importlib.util.find_spec(module) is None:
                raise SystemExit(
                    f"{engine} is not in this environment (no module {module}). 'make peers' builds one with all "
                    f"engines in .venv-peers; --engines leaves some out."
                )


def files(model: Path, field: Sequence[Variant], folder: Path, threads: int, note: Note) -> dict[str, Path]:
    """The GGUF file of every kind that the field reads; llama.cpp makes those that are not there yet, once."""
    found = {SHIPPED: model}
    for kind in sorted({variant.file for variant in field} - {SHIPPED}):
        found[kind] = requantised(model, kind, folder, threads, note)
    return found


def requantised(model: Path, kind: str, folder: Path, threads: int, note: Note) -> Path:
    """The model with linears of `kind`, which llama.cpp makes where it is not there yet. Raises SystemExit."""
    target = folder / f"{model.stem}-{model.stat().st_size}-{kind}.gguf"
    if not target.exists():
        note(f"requantising {model.name} to {kind}")
        command = [sys.executable, "-m", "benchmarks.peer_engines.requantise", str(model), kind, str(target)]
        done = subprocess.run(command, cwd=ROOT, env=environment(threads), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama.cpp cannot make {kind} of {model}: {done.stderr.strip()[-400:]}")
    return target


def bandwidth(threads: int) -> float:
    """GB/s by Thrifty's read kernel over 512 MB, best of 5. Raises SystemExit where that kernel does not run."""
    with WorkerProcess(threads) as worker:
        try:
            return float(worker.ask(PATIENCE, op="bandwidth", threads=threads)["gb_s"])
        except WorkerError as error:
            raise SystemExit(f"the memory's bandwidth cannot be measured: {error}") from error


def reference(model: Path, target: Path, threads: int, scored: int, timeout: float) -> None:
    """Write the predictions that others are compared with, unless they are there. Raises WorkerError."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with WorkerProcess(threads) as worker:
        options = {"model": str(model), "target": str(target), "prefix": 1024, "scored": scored, "threads": threads}
        worker.ask(timeout, op="reference", **options)


def convert(model: Path, threads: int) -> None:
    """Load the model once with Thrifty, so that its one conversion is over before starts are timed."""
    with WorkerProcess(threads) as worker:
        try:
            worker.ask(PATIENCE, op="load", engine=THRIFTY, specification={"path": str(model), "threads": threads})
        except WorkerError as error:
            raise SystemExit(f"thrifty does not load {model}: {error}") from error
