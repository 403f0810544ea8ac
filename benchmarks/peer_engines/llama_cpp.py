"""llama.cpp under comparison, through its C interface. Options: `flash`, flash attention on or off; `kv`, "f16" or
"q8_0" (which it has for values only with flash attention).
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np
from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing

BATCH = 512  # llama.cpp's own default of rows computed together (n_ubatch)
KINDS = {"f16": 1, "q8_0": 8}  # ggml's numbers of types
MARGIN = 256  # tokens of room beyond the prompt; llama.cpp rounds a context up to a multiple of 256


class LlamaCpp(PeerEngine):
    """The model stays; its context is made anew where its size changes, so that memory is that of the figure."""

    def __init__(self, specification: Specification) -> None:
        self._threads, self._options = specification.threads, specification.options
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(specification.path.encode(), parameters)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {specification.path}; its reason is above")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._shape = (0, 0)
        self._held = 0  # tokens of every sequence's prompt in the cache
        self._last: list[int] = []  # the tokens that each prompt's prediction chose
        self._batch = llama_cpp.llama_batch_init(max(BATCH, 64), 0, 1)

    def first_token(self, prompt: list[int]) -> int:
        self._open(len(prompt), 1)
        return self._prefill([prompt])[0]

    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        length, count = len(prompts[0]), len(prompts)
        if self._open(length, count):
            self._prefill([prompt[:64] for prompt in prompts])  # a new context's buffers come into memory
            self._held = 0
        prefill = None
        if not (reuse and self._held == length and self._cut(length)):
            before = time.perf_counter()
            self._last = self._prefill(prompts)
            prefill = time.perf_counter() - before
        tokens = list(self._last)
        begin = time.perf_counter()
        for step in range(steps):
            self._run([(token, length + step, index, True) for index, token in enumerate(tokens)])
            tokens = [self._best(index) for index in range(count)]
        return Timing(length * count, steps * count, time.perf_counter() - begin, prefill)

    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        self._open(len(tokens), 1)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        found = []
        first = len(tokens) - scored
        for start in range(0, len(tokens), BATCH):
            rows = [
                (token, start + at, 0, start + at >= first) for at, token in enumerate(tokens[start : start + BATCH])
            ]
            self._run(rows)
            found += [self._row(index).copy() for index, row in enumerate(rows) if row[3]]
        return np.stack(found)

    def _open(self, length: int, count: int) -> bool:
        """A context for `count` sequences of `length` tokens; True where it is a new one."""
        shape = ((length + MARGIN + 255) // 256 * 256, count)
        if shape == self._shape:
            return False
        if self._context:
            llama_cpp.llama_free(self._context)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = shape[0] * count, count
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = int(bool(self._options.get("flash")))
        parameters.type_k = parameters.type_v = KINDS[self._options.get("kv", "f16")]
        parameters.swa_full = False  # a sliding-window layer keeps its window only: its fastest and smallest
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context with {self._options}; its reason is above")
        self._shape, self._held = shape, 0
        return True

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        """Fill an empty cache with the prompts; the token that each predicts."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        rows = [
            (token, at, index, at == len(prompt) - 1)
            for index, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        chosen = []
        for start in range(0, len(rows), BATCH):
            piece = rows[start : start + BATCH]
            self._run(piece)
            chosen += [self._best(at) for at, row in enumerate(piece) if row[3]]
        self._held = len(prompts[0])
        return chosen

    def _cut(self, length: int) -> bool:
        """Cut every sequence back to its prompt; False where the cache cannot (sliding windows)."""
        memory = llama_cpp.llama_get_memory(self._context)
        return all(llama_cpp.llama_memory_seq_rm(memory, index, length, -1) for index in range(self._shape[1]))

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if code := llama_cpp.llama_decode(self._context, batch):
            raise ValueError(f"llama_decode of {len(rows)} rows gave {code}")

    def _row(self, index: int) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,))

    def _best(self, index: int) -> int:
        return int(self._row(index).argmax())
