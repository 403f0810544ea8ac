"""Runners: who computes the rows of a step.

A runner has no policy. It appends the rows it is given to their caches and returns scores; the caller
decides which rows stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thrifty.arrays import Floats
from thrifty.decoding.scores import Scores
from thrifty.engine.row_extra import RowExtra

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache

CHUNK = 128  # chunks of a prompt end at multiples of it

Watch = Callable[[int, Floats], None]


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens of one sequence. start: how many rows the sequence has before the first, which is its position
    too where `extra` says no other. length: see `rope.rotation`. extra: what the rows are beyond plain tokens.

    watch: told (layer, rotated queries fp32 [rows,
    heads, head_dim]) by `run_layers`, part after part, when a layer has appended the rows' keys.
    """

    cache: SequenceCache
    tokens: Sequence[int]
    start: int
    length: int
    watch: Watch | None = None
    extra: RowExtra | None = None


class Runner(Protocol):
    """Computes rows. `name` and `reason` say which one it is and why it was chosen."""

    name: str
    reason: str
    layers: int

    @property
    def most_rows(self) -> int:
        """The most rows that `decode` takes together."""
        ...

    def decode(self, batch: Sequence[Rows]) -> Scores:
        """Append all rows of several sequences and score each. A row's result does not depend on the others.

        Scores are in the order of the batch and valid until the next call. On an exception the caches may
        hold any part of the rows: the caller truncates.
        """
        ...

    def prefill(self, rows: Rows, last: bool) -> Scores | None:
        """Append a chunk of one prompt; the scores of its last row where it is the prompt's last chunk."""
        ...

    def embed(self, tokens: Sequence[int], extra: RowExtra | None = None) -> Floats:
        """The first hidden state [tokens, hidden] fp32, for prefill that goes by layers. extra: of these rows."""
        ...

    def run_layers(self, first: int, last: int, hidden: Floats, rows: Rows) -> Floats:
        """Layers first..last−1 over a chunk: appends their keys and values, returns the hidden state after them (may
        reuse it). `taps` of the rows are not heeded: the state is the caller's.
        """
        ...

    def logits(self, hidden: Floats) -> Scores:
        """Scores of final hidden rows [rows, hidden]."""
        ...

    @property
    def workspace(self) -> int:
        """Bytes of its buffers (and activations), logits of the rows left out."""
        ...

    def keep_logits(self, rows: int) -> None:
        """Give back what its buffers of logits hold beyond so many rows."""
        ...


def chunk_end(start: int, stop: int, chunk: int) -> int:
    """Where a chunk that begins at `start` ends: at a multiple of 128, or at `stop`."""
    return min(start - start % CHUNK + chunk, stop)
