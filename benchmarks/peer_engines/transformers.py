"""transformers under comparison, bf16. Options: `attention`, "eager" or "sdpa"."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing

if TYPE_CHECKING:
    import numpy as np


class Transformers(PeerEngine):
    """A GGUF file's packed weights become bf16 when it is read."""

    def __init__(self, specification: Specification) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(specification.threads)
        path = Path(specification.path)
        self._model = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=torch.bfloat16,
            attn_implementation=specification.options.get("attention", "sdpa"),
        ).eval()
        self.vocabulary = int(self._model.config.get_text_config().vocab_size)

    @torch.inference_mode()
    def first_token(self, prompt: list[int]) -> int:
        return int(self._model(torch.tensor([prompt])).logits[0, -1].argmax())

    @torch.inference_mode()
    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        before = time.perf_counter()
        found = self._model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        token = found.logits[:, -1:].argmax(-1)
        begin = time.perf_counter()
        for _ in range(steps):
            found = self._model(token, past_key_values=found.past_key_values, use_cache=True)
            token = found.logits[:, -1:].argmax(-1)
        end = time.perf_counter()
        return Timing(sum(map(len, prompts)), steps * len(prompts), end - begin, begin - before)

    @torch.inference_mode()
    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        found = self._model(torch.tensor([tokens]), logits_to_keep=scored).logits[0].float()
        values: np.ndarray = found.numpy()
        return values
