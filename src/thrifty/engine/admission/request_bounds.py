"""What a request may come to need of the engine's budget, before it runs, and whether it can run at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.bisection import largest
from thrifty.cache.footprint import Footprint
from thrifty.cache.policy import CachePolicy
from thrifty.engine.admission.request_sizes import RequestSizes
from thrifty.engine.drafting.drafting import NOTHING
from thrifty.errors import BudgetError
from thrifty.formats.kv import PAGE
from thrifty.storage.budget import format_size

if TYPE_CHECKING:
    from thrifty.engine.drafting.drafting import Drafting
    from thrifty.engine.running import Running


class RequestBounds:
    """Upper bounds of what requests hold, against the budget beside weights and workspace.

    workspace: bytes of the runner's buffers; beside them every active sequence has a row of logits, and natively the
    rotations of its present positions. adapters: bytes of those that are there now. budget: None: no bound.
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
        self.adapters = 0
        self._sizes = sizes
        self.budget = budget
        self._weights = weights
        self._row_bytes = row_bytes
        self._beside = beside

    @property
    def drafts_bytes(self) -> int:
        """Bytes of models that draft, what they hold for sequences left out."""
        return 0

    def footprint(
        self,
        policies: Sequence[CachePolicy],
        prompt: int,
        total: int,
        samples: int = 1,
        drafting: Drafting | None = None,
    ) -> Footprint:
        """Upper bounds of the bytes that a request takes beyond weights and workspace: its caches, a row of
        logits a sample (or as many as it drafts), the hidden state of its chunk or, where it compresses, of its prompt,
        what models that draft hold for it, and what prompt programs hold before that.
        """
        rows = 1 if drafting is None else drafting.rows
        reading = NOTHING if drafting is None else drafting.reading
        held = self._sizes.held(policies, prompt, total + rows - 1, samples)
        beside = samples * (rows * self._row_bytes + (0 if drafting is None else drafting.nbytes(total)))
        peak = max(held.peak_bytes, reading.cache) + beside + reading.drafts
        return Footprint(peak_bytes=peak, steady_bytes=held.steady_bytes + beside)

    def together(self, policies: Sequence[CachePolicy], prompt: int, total: int, sequences: int) -> Footprint:
        """`footprint` of several requests that share nothing: the last prompt is filled while the others decode."""
        single = self.footprint(policies, prompt, total)
        decoding = self._sizes.decoding(policies, prompt, total, 0) + self._row_bytes
        others = sequences - 1
        return Footprint(
            peak_bytes=max(single.peak_bytes, decoding if others else 0) + others * decoding,
            steady_bytes=sequences * single.steady_bytes,
        )

    def check(
        self,
        policies: Sequence[CachePolicy],
        prompt: int,
        total: int,
        samples: int = 1,
        drafting: Drafting | None = None,
        what: str = "the request",
    ) -> None:
        """Raise BudgetError where a request could not run even alone, with the tokens or the budget that
        would do.
        """
        budget = self.budget
        drafts = self.drafts_bytes
        cache = self.footprint(policies, prompt, total, samples, drafting).peak_bytes
        need = self._weights + self.adapters + self.workspace + drafts + cache
        if budget is None or need <= budget:
            return
        longest = self.longest(policies, prompt, total, samples, drafting)
        fits = f"at most {longest} tokens (prompt and answer together) fit, or" if longest else "no token fits;"
        beside = f"{format_size(self.adapters)} of adapters, " if self.adapters else ""
        whole = "" if self._beside is None else f", a process memory of {format_size(need + self._beside)}"
        drafting_models = f", {format_size(drafts)} of models that draft" if drafts else ""
        raise BudgetError(
            f"{what} does not fit: {format_size(self._weights)} of weights, {beside}{format_size(self.workspace)} of "
            f"workspace{drafting_models} and a cache that peaks at {format_size(cache)} for {prompt} + "
            f"{total - prompt} tokens exceed the budget of {format_size(budget)}; {fits} use a budget of {need} "
            f"bytes ({format_size(need)}){whole}"
        )

    def check_accepted(self, sequences: Sequence[Running], nbytes: int, what: str) -> None:
        """Raise BudgetError where one of the sequences could not end, even alone, beside `nbytes` bytes more.

        what: that has these bytes, for the error.
        """
        if self.budget is None:
            return
        room = self.budget - self._weights - self.adapters - self.workspace - self.drafts_bytes - nbytes
        for sequence in sequences:
            ticket, samples = sequence.ticket, sequence.samples
            bound = self.footprint(
                ticket.policies, sequence.prompt_length, sequence.total, samples, sequence.drafting
            ).peak_bytes
            if bound > room:
                raise BudgetError(
                    f"{what} of {format_size(nbytes)} leaves {format_size(max(0, room))} to an accepted request that "
                    f"may need {format_size(bound)}; wait for the end of request {ticket.request.identity}, or use a "
                    f"budget of {self.budget + bound - room} bytes ({format_size(self.budget + bound - room)})"
                )

    def least_budget(self, sequences: Sequence[Running]) -> int:
        """Bytes of a budget with which each of the sequences could still end, even alone, and one token be answered."""
        bounds = [self.footprint((), 1, 2).peak_bytes]
        for sequence in sequences:
            ticket, prompt = sequence.ticket, sequence.prompt_length
            bound = self.footprint(ticket.policies, prompt, sequence.total, sequence.samples, sequence.drafting)
            bounds.append(bound.peak_bytes)
        return self._weights + self.adapters + self.workspace + self.drafts_bytes + max(bounds)

    def longest(
        self,
        policies: Sequence[CachePolicy],
        prompt: int,
        total: int,
        samples: int = 1,
        drafting: Drafting | None = None,
    ) -> int:
        """The most tokens in all, at most `total`, that a request of `prompt` tokens (or fewer) may have;
        0: none.
        """
        if self.budget is None:
            return total
        room = self.budget - self._weights - self.adapters - self.workspace - self.drafts_bytes

        def fits(tokens: int) -> bool:
            return self.footprint(policies, min(prompt, tokens), tokens, samples, drafting).peak_bytes <= room

        return largest(0, total, fits)

    def pass_bytes(self, policy: CachePolicy, prompt: int) -> int:
        """The most bytes of a pass by layers over a prompt under a policy: its cache, and its hidden state."""
        return self._sizes.held((policy,), prompt, prompt, 1).peak_bytes

    def request_bytes(
        self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int = 1, rows: int = 1
    ) -> int:
        """The most bytes that a request holds at any moment: caches, statistics and hidden state, without its rows of
        logits. Bounds what is reserved for it. rows: of a sequence in a step.
        """
        drafted = rows - 1
        admitted = self._sizes.held(policies, prompt, min(total, prompt + PAGE) + drafted, samples).peak_bytes
        return max(admitted, self._sizes.held(policies, prompt, total + drafted, samples).peak_bytes)
