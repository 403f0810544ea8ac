"""An answer on its way through a grammar: which tokens may come next."""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from llguidance import LLMatcher

WORD = 32  # tokens in a word of a mask
SHOWN = 300  # characters of a reason


class Constraint:
    """The state of one sample. The next tokens are worked out in another thread, from the moment that a token is
    committed: beside the forward pass.

    End tokens may come where the grammar accepts what is there, and nowhere else. Behind one (in a draft) anything may:
    it is no part of the answer.
    """

    def __init__(self, matcher: LLMatcher, size: int, ends: Collection[int], worker: Executor) -> None:
        """matcher: its own. size: rows of the model's logits. ends: tokens that end an answer. worker: the other
        thread.
        """
        self._matcher = matcher
        self._size = size
        self._ends = ends
        self._over = False
        self._worker = worker
        self._next: Future[Flags] | None = worker.submit(_allowed, matcher, size)

    def allowed(self) -> Flags:
        """Which tokens may come next, [vocabulary]. Raises PromptError where the grammar is too complex to go on."""
        if self._over:
            return np.ones(self._size, np.bool_)
        if self._next is None:
            self._next = self._worker.submit(_allowed, self._matcher, self._size)
        return self._next.result()

    def masked(self, scores: Floats) -> Floats:
        """A copy of scores [vocabulary] fp32, −inf for tokens that may not come. Raises as `allowed` does."""
        return np.where(self.allowed(), scores, np.float32(-math.inf))

    def commit(self, token: int) -> None:
        """A token came. Raises PromptError where it may not."""
        if self._over:
            return
        self._settle()
        if not self._matcher.consume_token(token):
            raise PromptError(f"token {token} is not in the grammar: {reason(self._matcher.get_error())}")
        self._over = token in self._ends
        if not self._over:
            self._next = self._worker.submit(_allowed, self._matcher, self._size)

    def fork(self) -> Constraint:
        """Another one at the same place."""
        self._settle()
        other = Constraint(self._matcher.deep_copy(), self._size, self._ends, self._worker)
        other._over = self._over
        return other

    def _settle(self) -> None:
        """Wait until the other thread has done with the matcher."""
        if self._next is not None and not self._next.cancel():
            self._next.exception()
        self._next = None


def _allowed(matcher: LLMatcher, size: int) -> Flags:
    words = np.zeros(-(-size // WORD), np.int32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error():
        raise PromptError(f"the grammar cannot go on: {reason(matcher.get_error())}")
    return np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)


def reason(message: str) -> str:
    """The first words of an error of the library."""
    return message.strip()[:SHOWN]
