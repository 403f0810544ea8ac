"""A sequence: one sample of one request on its way through the engine."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

from torch import Tensor

from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.stopping import Stopper
from thrifty.engine.request import Event, Handle

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.intake import Ticket
    from thrifty.engine.prefill import Prefill


class State(enum.Enum):
    """Where a sequence is. PARKED: its segments are on the disk tier, its work goes on where it stopped."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


class Sequence:
    """The engine's record of one sample.

    Filled at submission: handle, index, arrival (order among all), ticket, sampler, stopper, tokens (prompt
    and committed answer). Filled at admission: cache, prefill, and the memory's own account: rows of
    logits, tokens covered by its reservation, tokens whose pages came from others, bytes of hidden state. While
    decoding, `cache` holds rows for all tokens but the newest.
    """

    def __init__(
        self, handle: Handle, index: int, arrival: int, ticket: Ticket, sampler: Sampler, stopper: Stopper
    ) -> None:
        self.handle = handle
        self.index = index
        self.arrival = arrival
        self.ticket = ticket
        self.strategy = ticket.strategy
        self.sampler = sampler
        self.stopper = stopper
        self.tokens: list[int] = list(ticket.request.prompt)
        self.prompt_length = len(self.tokens)
        self.state = State.WAITING
        self.parked = False
        self.cache: SequenceCache | None = None
        self.prefill: Prefill | None = None
        self.rows = self.covered = self.shared = self.hidden_bytes = 0

    @property
    def samples(self) -> int:
        """Samples that this sequence stands for: all of its request until its prompt is computed."""
        return self.ticket.request.samples if self.state in (State.WAITING, State.PREFILLING) else 1

    @property
    def computed(self) -> int:
        """Tokens whose rows are in the cache while decoding."""
        return len(self.tokens) - 1

    @property
    def total(self) -> int:
        """Tokens that the sequence may grow to, its answer's last one included."""
        return len(self.tokens) - self.stopper.count + self.stopper.maximum_tokens

    def advance(self, choices: Items[Choice], logits: Items[Tensor] = ()) -> list[Event]:
        """Commit tokens: sampler, stopper and tokens move on; one event a token, up to the one that ends
        the answer.
        """
        events = []
        for place, choice in enumerate(choices):
            self.sampler.commit(choice.token)
            self.tokens.append(choice.token)
            text, reason = self.stopper.push(choice.token)
            kept = logits[place] if logits else None
            events.append(self._event(self.index, choice.token, text, choice, reason, logits=kept))
            if reason is not None:
                break
        return events

    def endings(self, reason: str, error: Exception | None = None) -> list[Event]:
        """Events that end the sample, and those not forked from it yet, without a token; held-back text
        comes out.
        """
        text = self.stopper.flush()
        ended = range(self.index, self.index + self.samples)
        return [self._event(one, None, text, None, reason, error=error) for one in ended]

    def _event(
        self, index: int, token: int | None, text: str, choice: Choice | None, reason: str | None, **more: Any
    ) -> Event:
        logprob = None if choice is None else choice.logprob
        return Event(self.handle.identity, index, token, text, logprob, reason, **more)
