"""The process around kvpress, in an environment of its own: JSON lines in, JSON lines out.

    {"op": "load", "folder": "…", "threads": 2, "ends": [2]}  → {}
    {"op": "answer", "press": {"press": "SnapKVPress", "ratio": 0.5}, "prompt": […], "fed": [[…], …], "limit": 12}
        → {"answers": [[…], …]}
    {"op": "diverge", "press": …, "prompt": […], "answer": […]}  → {"kl": 0.1, "top1": 0.9}
    {"op": "speed", "press": …, "prompt": […], "answer": […]}  → kept, decode, prefill, process

It follows kvpress's own pipeline: the prompt is prefilled under the press, what comes after it keeps its true positions
and is not compressed. An error is {"error": "…"}; the process lives on. Nothing of Thrifty is imported here.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # written to clear_refs: VmHWM starts again from the present (proc(5))

Press = dict[str, Any]


class Peer:
    """One model of transformers."""

    def __init__(self, folder: str, threads: int, ends: list[int]) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.ends = set(ends)

    @torch.inference_mode()
    def answer(self, press: Press, prompt: list[int], fed: list[list[int]], limit: int) -> dict[str, Any]:
        """Greedy answers, each after the compressed prompt and its own question."""
        cache = self._prefilled(press, prompt)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        answers = []
        for question in fed:
            answers.append(self._generated(cache, len(prompt), question, limit))
            for layer, length in zip(cache.layers, lengths, strict=True):
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return {"answers": answers}

    @torch.inference_mode()
    def diverge(self, press: Press, prompt: list[int], answer: list[int]) -> dict[str, float]:
        """Mean KL(full ‖ compressed) in nats and agreement of first choices, over the answer's tokens but the first."""
        reference = self._logits({}, prompt, answer).log_softmax(-1)
        found = self._logits(press, prompt, answer).log_softmax(-1)
        kl = (reference.exp() * (reference - found)).sum(-1).clamp(min=0)
        same = reference.argmax(-1) == found.argmax(-1)
        return {"kl": float(kl.mean()), "top1": float(same.double().mean())}

    @torch.inference_mode()
    def speed(self, press: Press, prompt: list[int], answer: list[int]) -> dict[str, float]:
        """Rates of one round, bytes of the cache at the end, and the growth of the process at its highest."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier rows freed would hide this one's growth
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        begin = time.perf_counter()
        cache = self._prefilled(press, prompt)
        middle = time.perf_counter()
        for place, token in enumerate(answer):
            self._step(cache, [token], len(prompt) + place)
        end = time.perf_counter()
        grown = _status("VmHWM") - before
        return {
            "kept": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
            "decode": len(answer) / (end - middle),
            "prefill": len(prompt) / (middle - begin),
            "process": grown,
        }

    def _prefilled(self, press: Press, prompt: list[int]) -> Any:
        from transformers import DynamicCache

        self.model.set_attn_implementation(press.get("attention", "sdpa"))
        for layer in self.model.model.layers:
            layer.self_attn.masked_key_indices = None  # of an earlier press that masks instead of evicting
        cache = DynamicCache()
        made = _made(press)
        with made(self.model) if made is not None else contextlib.nullcontext():
            self.model.model(input_ids=torch.tensor([prompt]), past_key_values=cache)
        return cache

    def _logits(self, press: Press, prompt: list[int], answer: list[int]) -> Tensor:
        """[len(answer) − 1, vocabulary] fp64: what is predicted after each of the answer's tokens but the last."""
        logits: Tensor = self._step(self._prefilled(press, prompt), answer[:-1], len(prompt))
        return logits.double()

    def _step(self, cache: Any, tokens: Sequence[int], place: int) -> Tensor:
        if len({layer.keys.shape[2] for layer in cache.layers}) > 1 and len(tokens) > 1:
            # Layers of different lengths: the mask of a block of queries is made for the first layer's.
            each = [self._step(cache, [token], place + number) for number, token in enumerate(tokens)]
            return torch.cat(each)
        positions = torch.arange(place, place + len(tokens))[None]
        found = self.model(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, position_ids=positions)
        logits: Tensor = found.logits[0].float()
        return logits

    def _generated(self, cache: Any, place: int, question: list[int], limit: int) -> list[int]:
        said: list[int] = []
        following = list(question)
        while len(said) < limit and not (said and said[-1] in self.ends):
            said.append(int(self._step(cache, following, place)[-1].argmax()))
            place += len(following)
            following = [said[-1]]
        return said


def _made(press: Press) -> Any:
    """An instance of kvpress's class, None for an empty description."""
    if not press:
        return None
    import kvpress

    options = {"compression_ratio": press["ratio"], **press.get("options", {})}
    if "inner" in press:
        inner = getattr(kvpress, press["inner"])(**options)
        return getattr(kvpress, press["press"])(copy.deepcopy(inner))
    return getattr(kvpress, press["press"])(**options)


def _status(field: str) -> int:
    """Bytes of a line of the process's status."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}: peak memory is measured on Linux only")


def main() -> None:
    """Serve stdin until it ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with replies
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "load":
                peer, reply = Peer(**request), {}
            else:
                if peer is None or operation not in ("answer", "diverge", "speed"):
                    raise ValueError(f"cannot do '{operation}': load first, then answer, diverge or speed")
                reply = getattr(peer, operation)(**request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
