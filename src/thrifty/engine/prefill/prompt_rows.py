"""The rows of a prompt as a prefill hands them to a runner: where chunks end, and what rows are beyond plain tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.decoding.scores import ArrayScores, Scores
from thrifty.engine.row_extra import RowExtra
from thrifty.engine.runner import Rows, Runner, chunk_end

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.media import PromptMedia


class PromptRows:
    """A prompt's rows, by number. tokens: its ids, −1 where a row brings its embedding.

    tapped: layer → fp32 [1, hidden], the state of the prompt's last row, as `run_layers` filled it.
    """

    def __init__(
        self,
        cache: SequenceCache,
        tokens: Sequence[int],
        extra: RowExtra | None = None,
        media: PromptMedia | None = None,
    ) -> None:
        """extra: of every row of the sequence; media: of the prompt's embedded pieces."""
        self.cache, self.tokens, self.extra = cache, tokens, extra
        self.tapped: dict[int, Floats] = {}
        self._media = media

    def __len__(self) -> int:
        return len(self.tokens)

    def stop(self, start: int, chunk: int, whole: int = 1) -> int:
        """Where a chunk that begins at `start` ends: at a multiple of `whole` tokens where it may."""
        stop = chunk_end(start, len(self.tokens), chunk)
        if stop - stop % whole > start:
            stop -= stop % whole
        return stop if self._media is None else self._media.cut(start, stop)

    def part(self, start: int, stop: int) -> Rows:
        """The rows start..stop−1."""
        return Rows(self.cache, self.tokens[start:stop], start, len(self.tokens), extra=self._extra(start, stop))

    def embed(self, runner: Runner, start: int, chunk: int) -> Floats:
        """The first hidden states of all rows from `start` on, fp32 [rows, hidden]."""
        if self._media is None or not self._media.pieces:
            return runner.embed(self.tokens[start:])
        hidden = np.empty((len(self.tokens) - start, self._media.hidden_size), np.float32)
        for first in range(start, len(self.tokens), chunk):
            stop = min(first + chunk, len(self.tokens))
            hidden[first - start : stop - start] = runner.embed(self.tokens[first:stop], self._extra(first, stop))
        return hidden

    def run_layers(self, runner: Runner, first: int, last: int, hidden: Floats, rows: Rows) -> Floats:
        """`Runner.run_layers`; where `rows` hold the prompt's last one, its taps are kept."""
        taps = () if self.extra is None or rows.start + len(rows.tokens) < len(self.tokens) else self.extra.taps
        for layer in sorted(layer for layer in taps if first <= layer < last):
            hidden = runner.run_layers(first, layer + 1, hidden, rows)
            self.tapped[layer] = hidden[-1:].copy()
            first = layer + 1
        return runner.run_layers(first, last, hidden, rows) if first < last else hidden

    def scores(self, runner: Runner, hidden: Floats, count: int = 1) -> Scores:
        """Those of the prompt's last rows, from their final states; of one row with its taps."""
        scores = runner.logits(hidden[-count:])
        return ArrayScores(scores.logits(0).copy()[None], self.tapped) if self.tapped else scores

    def _extra(self, start: int, stop: int) -> RowExtra | None:
        if self._media is None:
            return self.extra
        own = self._media.extra(start, stop)
        if self.extra is None:
            return None if own.plain else own
        return dataclasses.replace(self.extra, embeddings=own.embeddings, positions=own.positions, ahead=own.ahead)
