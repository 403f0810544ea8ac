"""llama.cpp beside `speculation.py`, where llama-cpp-python is installed: plain, looking up, and with a draft model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.models.loading import resolve

CONTEXT = 2048
LENGTH = 4  # tokens that its draft model drafts


@dataclass(frozen=True)
class Peer:
    """name: as tables have it. rate: tokens a second of answers to these prompts, each of so many tokens, greedy."""

    name: str
    rate: Callable[[Sequence[Sequence[int]], int], float]


def peers(model: str, draft: str, threads: int, say: Callable[[str], None]) -> list[Peer]:
    """llama.cpp's sides on the same files; none, and the reason is said, where it or a GGUF file is missing."""
    try:
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    except ImportError:
        say("llama.cpp is left out: llama-cpp-python is not installed (make peers)")
        return []
    target, small = _file(model), None if ":" in draft else _file(draft)
    if target is None:
        say(f"llama.cpp is left out: {model} is no GGUF file")
        return []
    made = {"llama.cpp": None, "llama.cpp, prompt lookup": LlamaPromptLookupDecoding(num_pred_tokens=10)}
    if small is not None:
        made["llama.cpp, draft model"] = _Drafts(_opened(llama_cpp, small, threads, None))
    return [Peer(name, _rate(_opened(llama_cpp, target, threads, own))) for name, own in made.items()]


def _file(name: str) -> str | None:
    path = resolve(name)
    return str(path) if path.suffix == ".gguf" else None


def _opened(module: Any, path: str, threads: int, draft: Any) -> Any:
    return module.Llama(
        path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, draft_model=draft,
        logits_all=draft is not None, verbose=False,
    )  # fmt: skip


def _rate(model: Any) -> Callable[[Sequence[Sequence[int]], int], float]:
    """Of decoding alone: from the first token to the last."""

    def rate(prompts: Sequence[Sequence[int]], tokens: int) -> float:
        seconds = 0.0
        for prompt in prompts:
            stream = model.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0, reset=True)
            next(stream)
            start = time.perf_counter()
            for _ in range(tokens - 1):
                next(stream)
            seconds += time.perf_counter() - start
            stream.close()
        return len(prompts) * (tokens - 1) / seconds

    return rate


class _Drafts:
    """A model of llama.cpp that drafts for another, as its Python interface asks for drafts."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        """int32 [LENGTH]: its greedy continuation."""
        import numpy as np

        stream = self._model.generate(input_ids.tolist(), temp=0.0, top_k=1, repeat_penalty=1.0)
        found = [next(stream) for _ in range(LENGTH)]
        stream.close()
        return np.array(found, np.intc)
