"""Prefill for policies that run the model before they decide: the prompt, then their rehearsals, then their edits.

Each rehearsal goes through one layer after the other, so that a layer's keys are read once. Its rows are uncommitted:
they are dropped at its end, and a sequence that ends in the middle drops them with the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from thrifty.arrays import Floats
from thrifty.decoding.scores import ArrayScores, Scores
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prompt_rows import PromptRows
from thrifty.engine.runner import Rows, Runner, chunk_end
from thrifty.engine.running import Prefill

if TYPE_CHECKING:
    from thrifty.cache.rehearsals import Rehearsals
    from thrifty.cache.sequence import SequenceCache
    from thrifty.cache.statistics import Rehearsal


class RehearsedPrefill(Prefill):
    """A plain prefill, rehearsals, and the policies on all layers; see `Prefill`."""

    def __init__(
        self, runner: Runner, cache: SequenceCache, prompt: PromptRows, chunk: int, pace: Pace, whole: Prefill
    ) -> None:
        """chunk: rows, a multiple of 128. whole: fills the cache with the prompt."""
        self._runner = runner
        self._cache = cache
        self._prompt = prompt
        self._chunk = chunk
        self._pace = pace
        self._whole = whole
        self._scores: ArrayScores | None = None
        self._work: Iterator[None] = iter(())
        self._sliced = False

    def advance(self, sliced: bool = False) -> Scores | None:
        """The next piece of the prompt, a layer of a rehearsal (sliced: some of its chunks), or the policies."""
        if self._scores is None:
            self._begin(self._whole.advance(sliced))
            return None
        self._sliced = sliced
        for _ in self._work:
            return None
        self._cache.complete_prompt()
        return self._scores

    def _begin(self, scores: Scores | None) -> None:
        """With the prompt's last scores, which a runner's next call overwrites, the rehearsals begin."""
        if scores is not None:
            self._scores = ArrayScores(scores.logits(0).copy()[None], scores.taps)
            self._work = self._rehearse(self._cache.begin_rehearsals(self._prompt.tokens))

    def _rehearse(self, run: Rehearsals) -> Iterator[None]:
        """Do it all, stopping after every piece of work."""
        for piece in run.pieces:
            run.begin(piece)
            hidden = self._runner.embed(piece.tokens)
            for layer in range(self._runner.layers):
                yield from self._layer(layer, piece, hidden, run)
            run.end()

    def _layer(self, layer: int, piece: Rehearsal, hidden: Floats, run: Rehearsals) -> Iterator[None]:
        """All rows of a rehearsal through one layer; `hidden` is changed in place."""
        start, end = self._cache.length, self._cache.length + len(piece.tokens)
        first = start
        while first < end:
            chunk = self._pace.rows(self._chunk) if self._sliced else self._chunk
            share = self._pace.share(chunk, -(-(end - first) // chunk)) if self._sliced else end
            while share and first < end:
                before, stop = time.perf_counter(), chunk_end(first, end, chunk)
                part = slice(first - start, stop - start)
                extra = self._prompt.extra
                rows = Rows(self._cache, piece.tokens[part], first, len(self._prompt), run.observe, extra)
                hidden[part] = self._runner.run_layers(layer, layer + 1, hidden[part], rows)
                self._pace.measured(stop - first, 1, time.perf_counter() - before)
                first, share = stop, share - 1
            yield
