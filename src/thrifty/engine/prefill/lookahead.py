"""Prefill with tokens behind the prompt that the policies see, and that do not stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.decoding.scores import Scores
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prefill import LayerMajorPrefill
from thrifty.engine.prefill.prompt_rows import PromptRows
from thrifty.engine.runner import Runner
from thrifty.engine.running import Prefill

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.running import Running


class LookaheadPrefill(Prefill):
    """Layer by layer over the prompt and the tokens behind it; then the prompt's last token once more, behind the slots
    that stayed. The policies let go of the slots of both.
    """

    def __init__(
        self,
        runner: Runner,
        sequence: Running,
        cache: SequenceCache,
        ahead: Sequence[int],
        chunk: int,
        pace: Pace,
    ) -> None:
        """chunk: tokens, a multiple of 128."""
        self._runner, self._sequence, self._cache = runner, sequence, cache
        self._ahead = len(ahead)
        tokens = [*sequence.tokens, *ahead]
        cache.remember(tokens)
        self._whole = LayerMajorPrefill(runner, cache, PromptRows(cache, tokens, sequence.extra), chunk, pace)
        self._filled = False

    def advance(self, sliced: bool = False) -> Scores | None:
        """The next piece of the prompt, then its last token."""
        if self._filled:
            return self._last()
        self._filled = self._whole.piece(sliced) == self._runner.layers
        if self._filled:
            self._whole.commit()
            self._cache.end_lookahead(1 + self._ahead)
        return None

    def _last(self) -> Scores | None:
        tokens, cache = self._sequence.tokens, self._cache
        cache.remember(tokens[-1:], cache.length)
        cache.reserve(1)
        rows = PromptRows(cache, tokens, self._sequence.extra).part(cache.length, len(tokens))
        scores = self._runner.prefill(rows, last=True)
        cache.commit(1)
        return scores
