"""The process around one engine: JSON lines in, JSON lines out.

    {"op": "load", "engine": "thrifty", "specification": {...}}  → {"token": 123}   (loaded, and one token made)
    {"op": "measure", "context": 128, "batch": 1, "steps": 64, "seed": 7, "reuse": false}  → timing, peak_rss
    {"op": "kl", "reference": "file.npz"}  → {"kl": 0.05}
    {"op": "bandwidth", "threads": 2}  → {"gb_s": 33.0}
    {"op": "reference", "model": …, "target": "file.npz", "prefix": 1024, "scored": 256}  → {}

An error is {"error": "…"}; the worker lives on. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peer_engines.protocol import FIRST_PROMPT, PeerEngine, Specification, divergence

ENGINES = {
    "thrifty": ("benchmarks.peer_engines.thrifty", "ThriftyEngine"),
    "llama.cpp": ("benchmarks.peer_engines.llama_cpp", "LlamaCpp"),
    "openvino": ("benchmarks.peer_engines.openvino", "OpenVino"),
    "mistral.rs": ("benchmarks.peer_engines.mistral_rs", "MistralRs"),
    "transformers": ("benchmarks.peer_engines.transformers", "Transformers"),
}
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Worker:
    """Carries out one request after the other."""

    def __init__(self) -> None:
        self._engine: PeerEngine | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request. Raises what the engine raises."""
        operations: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "measure": self._measure,
            "kl": self._kl,
            "bandwidth": self._bandwidth,
            "reference": self._reference,
        }
        operation = operations.get(request.pop("op"))
        if operation is None:
            raise ValueError(f"unknown operation; known are {', '.join(operations)}")
        return operation(**request)

    @property
    def engine(self) -> PeerEngine:
        """The loaded one."""
        if self._engine is None:
            raise ValueError("nothing is loaded: send 'load' first")
        return self._engine

    def _load(self, engine: str, specification: dict[str, Any]) -> dict[str, Any]:
        module, name = ENGINES[engine]
        self._engine = getattr(importlib.import_module(module), name)(Specification(**specification))
        return {"token": int(self.engine.first_token(list(FIRST_PROMPT)))}

    def _measure(self, context: int, batch: int, steps: int, seed: int, reuse: bool) -> dict[str, Any]:
        prompts = random_prompts(self.engine.vocabulary, context, batch, seed)
        timing = self.engine.measure(prompts, steps, reuse)
        return {**asdict(timing), "peak_rss": peak_resident()}

    def _kl(self, reference: str) -> dict[str, Any]:
        import numpy as np

        with np.load(reference) as held:
            tokens, expected = held["tokens"].tolist(), held["logits"]
        return {"kl": divergence(expected, self.engine.logits(tokens, len(expected)))}

    def _bandwidth(self, threads: int) -> dict[str, Any]:
        from thrifty.evaluation.roofline.roofline import read_bandwidth

        rate, by = read_bandwidth(threads)
        if by != "native":
            raise ValueError("the bandwidth is measured by Thrifty's own read kernel, which is not built here")
        return {"gb_s": rate}

    def _reference(self, **options: Any) -> dict[str, Any]:
        from benchmarks.peer_engines.reference import write_reference

        write_reference(**options)
        return {}


def random_prompts(vocabulary: int, context: int, batch: int, seed: int) -> list[list[int]]:
    """`batch` prompts of `context` random token ids; another seed shares no beginning with this one."""
    chance = random.Random(seed)
    low = min(300, vocabulary // 2)  # below lie control tokens and bytes
    return [[chance.randrange(low, vocabulary) for _ in range(context)] for _ in range(batch)]


def peak_resident() -> int:
    """Highest resident bytes of this process since it started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def main() -> None:
    """Serve stdin until it ends."""
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)  # a stopped orphan would keep its memory for ever
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with replies
    worker = Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
