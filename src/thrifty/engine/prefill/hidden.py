"""A text that is read for the states of its rows alone, chunk by chunk, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.engine.runner import CHUNK, Rows, Runner, chunk_end
from thrifty.errors import BudgetError, QueueFullError

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.models.model import Model


class HiddenPrefill:
    """The hidden states of a text behind its last layer, before the final norm, a chunk at a time."""

    def __init__(
        self, runner: Runner, memory: EngineMemory, tokens: Sequence[int], chunk: int, salt: str | None = None
    ) -> None:
        """chunk: tokens, a multiple of 128. salt: requests under it may begin with the text's pages; None: nobody.

        The peak is promised here. Raises QueueFullError where others hold the memory now; whether it could fit at all
        is for the caller to check.
        """
        try:
            reservation = memory.cache.reserve("a text to read", memory.request_bytes((), len(tokens), len(tokens)))
        except BudgetError as error:
            raise QueueFullError(f"other requests hold the memory that this text needs: {error}") from error
        try:
            self._cache: SequenceCache = memory.cache.create((), reservation=reservation, publishes=False)
        except BaseException:
            reservation.release()
            raise
        self._runner, self._memory = runner, memory
        self._tokens = tokens
        self._chunk = chunk
        self._windowed = any(window is not None for window in self._cache.model.windows)
        self._salt = None if self._cache.model.state_layers else salt  # of states it takes no snapshots

    @property
    def done(self) -> bool:
        """Whether all chunks were read."""
        return self._cache.length == len(self._tokens)

    @property
    def length(self) -> int:
        """Tokens that were read."""
        return self._cache.length

    def advance(self) -> Floats:
        """The states of the next chunk: fp32 [rows, hidden]."""
        cache, end = self._cache, len(self._tokens)
        start = cache.length
        stop = chunk_end(start, end, self._chunk)
        if self._windowed and stop - stop % CHUNK > start:
            stop -= stop % CHUNK
        cache.reserve(stop - start)
        rows = Rows(cache, self._tokens[start:stop], start, end)
        hidden = self._runner.run_layers(0, self._runner.layers, self._runner.embed(rows.tokens), rows)
        cache.commit(stop - start)
        if self._salt is not None:
            self._memory.publish_text(cache, self._tokens, self._salt)
        return hidden

    def close(self) -> None:
        """Give all back. A second call has no effect."""
        self._memory.cache.release(self._cache)


def final_norm(model: Model, hidden: Floats) -> Floats:
    """Rows fp32 [rows, hidden] as the head of the model reads them: its final norm (root mean square: arXiv 1910.07467,
    eq. 4; layer: arXiv 1607.06450, eq. 4) over them.
    """
    config = model.config
    weight = model.norms["final_norm"] + np.float32(config.norm_offset)
    if config.norm == "layer":
        centred = hidden - hidden.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(config.norm_epsilon))
        normed: Floats = centred / scale * weight + model.norms["final_norm.bias"]
        return normed
    scale = np.sqrt(np.square(hidden).mean(axis=1, keepdims=True) + np.float32(config.norm_epsilon))
    scaled: Floats = hidden / scale * weight
    return scaled
