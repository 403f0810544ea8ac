"""Prefill as a thing that stops and goes on: one piece a step, so that decode steps of others run in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from thrifty.decoding.strategy import Scores
from thrifty.engine.runner import CHUNK, Rows, Runner

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.sequence import Sequence as Running


class Prefill(Protocol):
    """The computation of one prompt into one cache."""

    def advance(self) -> Scores | None:
        """Do the next piece. The scores of the prompt's last token once all is done, else None."""
        ...


def start_prefill(runner: Runner, sequence: Running, chunk: int, publish: Callable[[Running], None]) -> Prefill:
    """The prefill that an admitted sequence's cache asks for. publish: offers what is computed to the prefix tree."""
    cache = sequence.cache
    assert cache is not None, "an admitted sequence has a cache"
    sequence.handle.mark_admitted(cache.hit)
    if cache.layer_major:
        return LayerMajorPrefill(runner, cache, sequence.tokens, chunk)
    return ChunkedPrefill(runner, cache, sequence.tokens, chunk, lambda: publish(sequence))


class ChunkedPrefill:
    """All layers over one chunk of tokens at a time: for caches that keep what they are given."""

    def __init__(
        self, runner: Runner, cache: SequenceCache, prompt: Sequence[int], chunk: int, publish: Callable[[], None]
    ) -> None:
        """chunk: tokens, a multiple of 128. What the cache holds already (a prefix hit) is not computed again.
        publish: called after each chunk, while windowed layers still hold what a hit there would need.
        """
        self._runner = runner
        self._cache = cache
        self._prompt = prompt
        self._chunk = chunk
        self._publish = publish
        self._windowed = any(window is not None for window in cache.model.windows)

    def advance(self) -> Scores | None:
        """The next chunk; it ends at a multiple of 128 or at the prompt's end."""
        start = self._cache.length
        _, stop = next(chunks(start, len(self._prompt), self._chunk))
        if self._windowed and stop - stop % CHUNK > start:
            stop -= stop % CHUNK
        rows = Rows(self._cache, self._prompt[start:stop], start, len(self._prompt))
        self._cache.reserve(stop - start)
        scores = self._runner.prefill(rows, last=stop == len(self._prompt))
        self._cache.commit(stop - start)
        self._publish()
        return scores


class LayerMajorPrefill:
    """The whole prompt through one layer at a time; each layer is compressed before the next one starts.

    So the peak is one full layer plus the compressed rest (and the hidden state of the prompt, as workspace).
    """

    def __init__(self, runner: Runner, cache: SequenceCache, prompt: Sequence[int], chunk: int) -> None:
        """chunk: tokens, a multiple of 128. What the cache holds already (a prefix hit) is not computed
        again.
        """
        self._runner = runner
        self._cache = cache
        self._prompt = prompt
        self._start = cache.length
        self._chunk = chunk
        self._layer = 0
        self._hidden = runner.embed(prompt[self._start :])

    def advance(self) -> Scores | None:
        """The next layer, chunked inside, then the policies on it."""
        self._cache.begin_layer(self._layer, len(self._hidden))
        for first, stop in chunks(self._start, len(self._prompt), self._chunk):
            rows = Rows(self._cache, self._prompt[first:stop], first, len(self._prompt))
            piece = slice(first - self._start, stop - self._start)
            self._hidden[piece] = self._runner.layer(self._layer, self._hidden[piece], rows)
        self._cache.seal_layer(self._layer)
        self._layer += 1
        if self._layer < self._runner.layers:
            return None
        self._cache.commit(len(self._hidden))
        return self._runner.logits(self._hidden[-1:])


def chunks(start: int, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """The range cut into chunks that end at multiples of 128."""
    while start < stop:
        end = min(start - start % CHUNK + chunk, stop)
        yield start, end
        start = end
