"""Thrifty under comparison. Options: `recipe`, a recipe's tables; `native`, False for the reference runner."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Handle, Request
from thrifty.evaluation.forcing import force
from thrifty.evaluation.roofline.roofline import weight_bytes_per_token

if TYPE_CHECKING:
    import numpy as np


class ThriftyEngine(PeerEngine):
    """The engine with its native plan, which it insists on; the prefix tree is off."""

    def __init__(self, specification: Specification) -> None:
        from thrifty.api import Thrifty

        self._thrifty = Thrifty(
            specification.path,
            recipe=specification.options.get("recipe", {}),
            threads=specification.threads,
            native=specification.options.get("native", True),
            prefix_tree=False,
        )
        self._engine = self._thrifty.engine
        self.vocabulary = self._thrifty.model.config.vocabulary_size

    def first_token(self, prompt: list[int]) -> int:
        return int(self._thrifty.generate(prompt, greedy=True, max_tokens=1, ignore_eos=True).token_ids[0])

    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        alone = len(prompts) == 1
        most = steps + 1 if alone else steps + 2 + 2 * len(prompts)
        sampling = SamplingParameters.of(greedy=True, max_tokens=most, ignore_eos=True)
        before = time.perf_counter()
        handles = [self._engine.submit(Request(prompt=prompt, sampling=sampling)) for prompt in prompts]
        while not all(handle.usage.generated_tokens for handle in handles):
            self._engine.step()
        read = weight_bytes_per_token(self._thrifty.model) + sum(self._cache_bytes(handle) for handle in handles)
        begin, made = time.perf_counter(), _made(handles)
        if alone:
            handles[0].result()  # nobody listens to each token, as in the loops of the peers
        else:
            for _ in range(steps):
                self._engine.step()
        end, tokens = time.perf_counter(), _made(handles) - made
        for handle in handles:
            handle.cancel()
        return Timing(sum(map(len, prompts)), tokens, end - begin, begin - before, read)

    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        """By teacher forcing, so that the scored tokens read the cache that the recipe compressed."""
        import numpy as np

        rows = []
        for step in force(self._engine, tokens[:-scored], [*tokens[-scored:], 0], logits=True):
            if step.index and step.logits is not None:
                rows.append(step.logits.copy())
        return np.stack(rows)

    def _cache_bytes(self, handle: Handle) -> int:
        held = self._engine.cache_of(handle)
        return 0 if held is None else held.nbytes


def _made(handles: list[Handle]) -> int:
    return sum(handle.usage.generated_tokens for handle in handles)
