"""Runners: who computes the rows of a step.

A runner has no policy. It appends the rows it is given to their caches and returns scores; the caller
decides which rows stay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from thrifty.decoding.strategy import Scores

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.models.model import Model

BLOCK = 64  # rows that the reference computes together: a page, so any chunking computes the same blocks
CHUNK = 128  # chunks of a prompt end at multiples of it

Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens of one sequence. start: the position of the first. length: see `rope.rotation`.

    watch: told (layer, rotated queries fp32 [rows,
    heads, head_dim]) by `run_layers`, part after part, when a layer has appended the rows' keys.
    """

    cache: SequenceCache
    tokens: Sequence[int]
    start: int
    length: int
    watch: Watch | None = None


class Runner(Protocol):
    """Computes rows. `name` and `reason` say which one it is and why it was chosen."""

    name: str
    reason: str
    layers: int

    def decode(self, batch: Sequence[Rows]) -> Scores:
        """Append all rows of several sequences and score each. A row's result does not depend on the others.

        Scores are in the order of the batch and valid until the next call. On an exception the caches may
        hold any part of the rows: the caller truncates.
        """
        ...

    def prefill(self, rows: Rows, last: bool) -> Scores | None:
        """Append a chunk of one prompt; the scores of its last row where it is the prompt's last chunk."""
        ...

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """The first hidden state [tokens, hidden] fp32, for prefill that goes by layers."""
        ...

    def run_layers(self, first: int, last: int, hidden: Tensor, rows: Rows) -> Tensor:
        """Layers first..last−1 over a chunk: appends their keys and values, returns the hidden state after them (may
        reuse it).
        """
        ...

    def logits(self, hidden: Tensor) -> Scores:
        """Scores of final hidden rows [rows, hidden]."""
        ...

    @property
    def workspace(self) -> int:
        """Bytes of its buffers (and activations), logits of the rows left out."""
        ...

    def keep_logits(self, rows: int) -> None:
        """Give back what its buffers of logits hold beyond so many rows."""
        ...


class TensorScores:
    """Scores that lie in a tensor [rows, vocabulary] fp32."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def logits(self, row: int) -> Tensor:
        """[vocabulary] fp32 of one row."""
        return self.values[row]

    def best(self, row: int) -> int:
        """The row's arg-max, or −1 where it is no number."""
        largest, best = self.values[row].max(dim=0)  # NaN where any is NaN
        return int(best) if math.isfinite(largest) else -1


class ReferenceRunner:
    """The decoder's own layers with the cache's reference attention. Any model, any policy; the oracle.

    Rows are computed one sequence at a time, and within a prompt in blocks of a page: so a
    result is the same bits in any batch and any chunking.
    """

    name = "reference"

    def __init__(self, model: Model, reason: str) -> None:
        self.reason = reason
        self._decoder = model.decoder
        self._config = model.config
        self.layers = len(model.config.layers)

    @torch.no_grad()
    def decode(self, batch: Sequence[Rows]) -> Scores:
        """See Runner. Every row is computed alone."""
        found = []
        for rows in batch:
            for place, token in enumerate(rows.tokens):
                one = Rows(rows.cache, (token,), rows.start + place, rows.length)
                found.append(self._decoder.logits(self._forward(one)))
        return TensorScores(torch.cat(found))

    @torch.no_grad()
    def prefill(self, rows: Rows, last: bool) -> Scores | None:
        """See Runner."""
        hidden = None
        for block in blocks(rows):
            hidden = self._forward(block)
        if not last or hidden is None:
            return None
        return self.logits(hidden[-1:])

    @torch.no_grad()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """See Runner."""
        return self._decoder.embed(torch.tensor(tokens, dtype=torch.long))

    @torch.no_grad()
    def run_layers(self, first: int, last: int, hidden: Tensor, rows: Rows) -> Tensor:
        """See Runner."""
        for index in range(first, last):
            for block in blocks(rows):
                place = block.start - rows.start
                piece = slice(place, place + len(block.tokens))
                hidden[piece] = self._layer(index, hidden[piece], block)
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Scores:
        """See Runner."""
        return TensorScores(self._decoder.logits(hidden))

    @property
    def workspace(self) -> int:
        """See Runner: a block's hidden states and MLP in fp32."""
        config = self._config
        widths = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * config.query_width
        return 4 * BLOCK * widths

    def keep_logits(self, rows: int) -> None:
        """See Runner: it keeps none between its calls."""

    def _forward(self, rows: Rows) -> Tensor:
        hidden = self._decoder.embed(torch.tensor(rows.tokens, dtype=torch.long))
        for index in range(len(self._config.layers)):
            hidden = self._layer(index, hidden, rows)
        return hidden

    def _layer(self, index: int, hidden: Tensor, rows: Rows) -> Tensor:
        positions = torch.arange(rows.start, rows.start + len(rows.tokens))
        attend = attend_to(rows.cache, positions, rows.watch)
        return self._decoder.layer(index, hidden, positions, attend, rows.length)


def attend_to(
    cache: SequenceCache, positions: Tensor, watch: Watch | None = None
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """The decoder's injected attention over a sequence's cache: append the rows, then attend with them."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append(layer, key, value)
        if watch is not None:
            watch(layer, query.float())
        return cache.attend(layer, query, positions)

    return attend


def blocks(rows: Rows) -> list[Rows]:
    """The rows cut where pages begin."""
    pieces = []
    done = 0
    while done < len(rows.tokens):
        start = rows.start + done
        stop = min(done + BLOCK - start % BLOCK, len(rows.tokens))
        pieces.append(dataclasses.replace(rows, tokens=rows.tokens[done:stop], start=start))
        done = stop
    return pieces


def chunk_end(start: int, stop: int, chunk: int) -> int:
    """Where a chunk that begins at `start` ends: at a multiple of 128, or at `stop`."""
    return min(start - start % CHUNK + chunk, stop)
