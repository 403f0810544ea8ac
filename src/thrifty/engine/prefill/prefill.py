"""Prefill as a thing that stops and goes on: one piece a step, so that decode steps of others run in between.

A piece is a chunk of the prompt through all layers, or, while others decode, through a few: a slice. Rows and layers
are cut where a result does not depend on it. Rows of an unfinished chunk are in some layers of the cache only; they are
committed and published when the last layer has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from thrifty.arrays import Floats
from thrifty.decoding.scores import Scores
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prompt_rows import PromptRows
from thrifty.engine.prefill.rehearsal import RehearsedPrefill
from thrifty.engine.runner import CHUNK, Rows, Runner
from thrifty.engine.running import Prefill, Running
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache


def start_prefill(
    runner: Runner, sequence: Running, chunk: int, publish: Callable[[Running], None], pace: Pace
) -> Prefill:
    """The prefill that an admitted sequence's cache asks for. publish: offers what is computed to the prefix tree."""
    cache = sequence.cache
    assert cache is not None, "an admitted sequence has a cache"
    sequence.answer.mark_admitted(cache.hit)
    return prefill_of(runner, sequence, cache, chunk, publish, pace)


def prefill_of(
    runner: Runner,
    sequence: Running,
    cache: SequenceCache,
    chunk: int,
    publish: Callable[[Running], None],
    pace: Pace,
) -> Prefill:
    """The prefill of a sequence's tokens that a cache asks for; see `start_prefill`."""
    cache.remember(sequence.tokens)
    prompt = PromptRows(cache, sequence.tokens, sequence.extra, sequence.media)
    if cache.layer_major:
        return LayerMajorPrefill(runner, cache, prompt, chunk, pace)
    if cache.rehearses is not None:
        # Not in the prefix tree: what a compressed prompt lets go of is to be free.
        whole = ChunkedPrefill(runner, cache, prompt, chunk, pace, cache.put_pages)
        return RehearsedPrefill(runner, cache, prompt, chunk, pace, whole)
    if any(policy.causal for policy in cache.policies):
        chunk = CHUNK  # policies act where chunks end
    return ChunkedPrefill(runner, cache, prompt, chunk, pace, lambda: publish(sequence))


class ChunkedPrefill(Prefill):
    """One chunk of tokens after the other, each through all layers: for caches that keep what they are given."""

    def __init__(
        self,
        runner: Runner,
        cache: SequenceCache,
        prompt: PromptRows,
        chunk: int,
        pace: Pace,
        publish: Callable[[], None],
    ) -> None:
        """chunk: tokens, a multiple of 128. What the cache holds already (a prefix hit) is not computed again.
        publish: called after each chunk, while windowed layers still hold what a hit there would need, and where
        recurrent layers have the state that it would go on from.
        """
        self._runner = runner
        self._cache = cache
        self._prompt = prompt
        self._chunk = chunk
        self._pace = pace
        self._publish = publish
        windowed = any(window is not None for window in cache.model.windows)
        self._whole = PAGE if cache.model.state_layers else CHUNK if windowed else 1  # a hit can end where chunks do
        self._cut: tuple[Rows, Floats] | None = None
        self._layer = 0

    def advance(self, sliced: bool = False) -> Scores | None:
        """The next chunk, the rest of one that was cut, or a slice of either."""
        before = time.perf_counter()
        if self._cut is None and not sliced:
            rows = self._begin(self._chunk)
            scores = self._runner.prefill(rows, last=self._is_last(rows))
            self._pace.measured(len(rows.tokens), self._runner.layers, time.perf_counter() - before)
            return self._finish(rows, scores)
        if self._cut is None:
            rows = self._begin(self._pace.rows(self._chunk))
            self._cut = rows, self._runner.embed(rows.tokens, rows.extra)
        rows, hidden = self._cut
        left = self._runner.layers - self._layer
        layers = self._pace.share(len(rows.tokens), left) if sliced else left
        hidden = self._prompt.run_layers(self._runner, self._layer, self._layer + layers, hidden, rows)
        self._pace.measured(len(rows.tokens), layers, time.perf_counter() - before)
        self._layer += layers
        self._cut = rows, hidden
        if self._layer < self._runner.layers:
            return None
        self._cut, self._layer = None, 0
        return self._finish(rows, self._prompt.scores(self._runner, hidden) if self._is_last(rows) else None)

    def _begin(self, chunk: int) -> Rows:
        """The next rows, with room for them; they end at a multiple of 128, at the prompt's end, or beside a span whose
        rows see each other.
        """
        start = self._cache.length
        stop = self._prompt.stop(start, chunk, whole=self._whole)
        self._cache.reserve(stop - start)
        return self._prompt.part(start, stop)

    def _finish(self, rows: Rows, scores: Scores | None) -> Scores | None:
        self._cache.commit(len(rows.tokens))
        self._publish()
        return scores

    def _is_last(self, rows: Rows) -> bool:
        return rows.start + len(rows.tokens) == len(self._prompt)


class LayerMajorPrefill(Prefill):
    """The whole prompt through one layer at a time; each layer is compressed before the next one starts.

    So the peak is one full layer plus the compressed rest (and the hidden state of the prompt, as workspace).
    """

    def __init__(
        self, runner: Runner, cache: SequenceCache, prompt: PromptRows, chunk: int, pace: Pace, scored: int = 1
    ) -> None:
        """chunk: tokens, a multiple of 128. What the cache holds already (a prefix hit) is not computed
        again. scored: of how many of the last tokens the scores are wanted.
        """
        self._runner = runner
        self._cache = cache
        self._prompt = prompt
        self._start = self._next = cache.length
        self._chunk = chunk
        self._pace = pace
        self._layer = 0
        self._sealing = 0.0
        self._scored = scored
        self._border = cache.border
        self._hidden = prompt.embed(runner, self._start, chunk)

    def advance(self, sliced: bool = False) -> Scores | None:
        """The rest of a layer, chunked inside, then the policies on it; sliced: some of the chunks, or the policies."""
        if self.piece(sliced) < self._runner.layers:
            return None
        self.commit()
        return self._prompt.scores(self._runner, self._hidden, self._scored)

    def commit(self) -> None:
        """All layers have had the prompt: the cache holds it from now on."""
        self._cache.commit(len(self._hidden))

    def piece(self, sliced: bool = False) -> int:
        """The next piece; how many layers are done after it."""
        before = time.perf_counter()
        end = len(self._prompt)
        if self._next == self._start:
            self._cache.begin_layer(self._layer, end - self._start)
        if self._next < end:
            self._chunks(sliced)
            spent = time.perf_counter() - before
            if sliced and (self._next < end or not self._pace.fits(spent + self._sealing)):
                return self._layer
        return self._seal()

    def _chunks(self, sliced: bool) -> None:
        end = len(self._prompt)
        chunk = self._pace.rows(self._chunk) if sliced else self._chunk
        share = self._pace.share(chunk, -(-(end - self._next) // chunk)) if sliced else end
        while share and self._next < end:
            before, first, stop = time.perf_counter(), self._next, self._prompt.stop(self._next, chunk)
            stop = self._border if first < self._border < stop else stop
            rows, layer = self._prompt.part(first, stop), self._layer
            piece = slice(first - self._start, stop - self._start)
            self._hidden[piece] = self._prompt.run_layers(self._runner, layer, layer + 1, self._hidden[piece], rows)
            self._pace.measured(stop - first, 1, time.perf_counter() - before)
            self._next = stop
            share -= 1
            if stop == self._border:
                self._cache.put_sums(layer)

    def _seal(self) -> int:
        """Let the policies act on the layer; how many are done then."""
        before = time.perf_counter()
        self._cache.seal_layer(self._layer)
        self._sealing = time.perf_counter() - before
        self._layer, self._next = self._layer + 1, self._start
        return self._layer
