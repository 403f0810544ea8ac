"""What a request may come to need of the engine's budget, before it runs, and whether it can run at all."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.bisection import largest
from thrifty.cache.footprint import Footprint
from thrifty.cache.policy import CachePolicy
from thrifty.engine.admission.request_sizes import RequestSizes
from thrifty.errors import BudgetError
from thrifty.formats.kv import PAGE
from thrifty.storage.budget import format_size


class RequestBounds:
    """Upper bounds of what requests hold, against the budget beside weights and workspace.

    workspace: bytes of the runner's buffers; beside them every active sequence has a row of logits, and natively the
    rotations of its present positions.
    """

    def __init__(
        self,
        sizes: RequestSizes,
        *,
        budget: int | None,
        weights: int,
        workspace: int,
        row_bytes: int,
        beside: int | None,
    ) -> None:
        """All in bytes. budget: None: no bound. row_bytes: of one active sequence. beside: of the process beside the
        ledger, where it is bounded as a whole.
        """
        self.workspace = workspace
        self._sizes = sizes
        self._budget = budget
        self._weights = weights
        self._row_bytes = row_bytes
        self._beside = beside

    def footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int = 1) -> Footprint:
        """Upper bounds of the bytes that a request takes beyond weights and workspace: its caches, a row of
        logits a sample, and the hidden state of its chunk or, where it compresses, of its prompt.
        """
        held = self._sizes.held(policies, prompt, total, samples)
        rows = samples * self._row_bytes
        return Footprint(peak_bytes=held.peak_bytes + rows, steady_bytes=held.steady_bytes + rows)

    def together(self, policies: Sequence[CachePolicy], prompt: int, total: int, sequences: int) -> Footprint:
        """`footprint` of several requests that share nothing: the last prompt is filled while the others decode."""
        one = self.footprint(policies, prompt, total)
        decoding = self._sizes.decoding(policies, prompt, total, 0) + self._row_bytes
        others = sequences - 1
        return Footprint(
            peak_bytes=max(one.peak_bytes, decoding if others else 0) + others * decoding,
            steady_bytes=sequences * one.steady_bytes,
        )

    def check(
        self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int = 1, what: str = "the request"
    ) -> None:
        """Raise BudgetError where a request could not run even alone, with the tokens or the budget that
        would do.
        """
        budget = self._budget
        need = self._weights + self.workspace + self.footprint(policies, prompt, total, samples).peak_bytes
        if budget is None or need <= budget:
            return
        longest = self.longest(policies, prompt, total, samples)
        fits = f"at most {longest} tokens (prompt and answer together) fit" if longest else "no token fits"
        whole = "" if self._beside is None else f", a process memory of {format_size(need + self._beside)}"
        raise BudgetError(
            f"{what} does not fit: {format_size(self._weights)} of weights, {format_size(self.workspace)} of workspace "
            f"and a cache that peaks at {format_size(need - self._weights - self.workspace)} for {prompt} + "
            f"{total - prompt} tokens exceed the budget of {format_size(budget)}; {fits}, or use a budget of {need} "
            f"bytes ({format_size(need)}){whole}"
        )

    def longest(self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int = 1) -> int:
        """The most tokens in all, at most `total`, that a request of `prompt` tokens (or fewer) may have;
        0: none.
        """
        if self._budget is None:
            return total
        room = self._budget - self._weights - self.workspace
        return largest(
            0, total, lambda tokens: self.footprint(policies, min(prompt, tokens), tokens, samples).peak_bytes <= room
        )

    def request_bytes(self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int = 1) -> int:
        """The most bytes that a request holds at any moment: caches, statistics and hidden state, without its rows of
        logits. Bounds what is reserved for it.
        """
        admitted = self._sizes.held(policies, prompt, min(total, prompt + PAGE), samples).peak_bytes
        return max(admitted, self._sizes.held(policies, prompt, total, samples).peak_bytes)
