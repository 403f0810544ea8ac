"""A sequence: one sample of one request on its way through the engine."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from thrifty.arrays import Floats
from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.scores import Scores
from thrifty.decoding.stopping import Stopper
from thrifty.decoding.strategy import Drafter
from thrifty.engine.answer import Answer, Event
from thrifty.engine.drafting.drafting import NOTHING

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.continued import Continued
    from thrifty.engine.prompt.program import Read
    from thrifty.engine.sessions.session import Session
    from thrifty.engine.ticket import Ticket


class Prefill(Protocol):
    """The computation of one prompt into one cache."""

    def advance(self, sliced: bool = False) -> Scores | None:
        """Do the next piece; `sliced`: no more than a slice of it. The scores of the prompt's last token once all is
        done, else None.
        """
        ...

    def close(self) -> None:
        """Give back what it holds beside the sequence's cache. It does not go on afterwards."""
        return


class State(enum.Enum):
    """What is to be done for a sequence: admit it, compute its prompt, decode. (`parked` says whether it may now.)"""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"


class Running:
    """The engine's record of one sample.

    Filled at submission: answer, index, arrival (order among all), ticket, sampler, stopper, tokens (prompt
    and committed answer). Filled at admission: cache, prefill, and the memory's own account: rows of
    logits, tokens covered by its reservation, tokens whose pages came from others, bytes of hidden state, and of models
    that draft. While decoding, `cache` holds rows for all tokens but the newest. drafter: what its strategy knows of
    it, from its first step on; drafted_rows: the most that it runs beyond its newest token. parked: it waits for
    memory, its segments may lie on the disk tier, and it goes on where it stopped. continued: itself in native code,
    once it decodes there. extra: what all its rows are beyond plain tokens; media: what the prompt's embedded rows add;
    session: that its request goes on from. shift: how far the positions of its answer are from the numbers of its rows.
    reading: the programs that have still to look at its prompt, None where nothing has; until then `tokens` are the
    prompt, and `prompt_length` is the most that will be read of it. program_key: tells apart the pages of a prompt that
    was not read whole. drafting: what its decoding takes beside the cache, and its programs until they are done.
    """

    def __init__(
        self, answer: Answer, index: int, arrival: int, ticket: Ticket, sampler: Sampler, stopper: Stopper
    ) -> None:
        self.answer = answer
        self.index = index
        self.arrival = arrival
        self.ticket = ticket
        self.strategy = ticket.drafting.strategy
        self.drafter: Drafter | None = None
        self.drafted_rows = ticket.drafting.rows - 1
        self.sampler = sampler
        self.stopper = stopper
        self.extra, self.media = ticket.extra, ticket.request.media
        self.shift = 0 if self.media is None else self.media.shift
        self.tokens: list[int] = list(ticket.request.ids)
        self.reading = ticket.reading
        self.drafting = ticket.drafting
        self.program_key = ""
        self.prompt_length = len(self.tokens) if self.reading is None else self.reading.rows
        self.state = State.WAITING
        self.parked = False
        self.cache: SequenceCache | None = None
        self.prefill: Prefill | None = None
        self.continued: Continued | None = None
        self.session: Session | None = None
        self.owner, self.priority = ticket.request.owner, ticket.request.priority
        self.rows = self.covered = self.shared = self.hidden_bytes = self.draft_bytes = 0

    @property
    def samples(self) -> int:
        """Samples that this sequence stands for: all of its request until its prompt is computed."""
        return self.ticket.request.samples if self.state in (State.WAITING, State.PREFILLING) else 1

    @property
    def computed(self) -> int:
        """Tokens whose rows are in the cache while decoding."""
        return len(self.tokens) - 1

    @property
    def told_tokens(self) -> list[int]:
        """The tokens without those of a stop string, which the answer's text leaves out."""
        told = self.stopper.told
        return self.tokens if told is None else self.tokens[: len(self.tokens) - self.stopper.count + told]

    @property
    def cost(self) -> float:
        """What it took of the machine so far, in tokens: each that was computed of its prompt, and twice each of its
        answer.
        """
        return max(0, self.prompt_length - self.shared) + 2 * self.stopper.count

    @property
    def total(self) -> int:
        """Tokens that the sequence may grow to, its answer's last one included."""
        if self.reading is not None:
            return self.prompt_length + self.stopper.maximum_tokens
        return len(self.tokens) - self.stopper.count + self.stopper.maximum_tokens

    def put_read(self, read: Read) -> None:
        """Its programs are done: from now on its prompt is what they left of it."""
        assert self.reading is not None, "programs have looked at it"
        self.program_key, self.reading = self.reading.key, None
        self.drafting = dataclasses.replace(self.drafting, reading=NOTHING)
        self.tokens = list(read.tokens)
        self.prompt_length = len(self.tokens)
        self.answer.usage.kept_tokens = read.kept

    def stop_prefill(self) -> None:
        """Forget what was begun of its prompt beside the cache. Programs begin anew."""
        prefill, self.prefill = self.prefill, None
        if prefill is not None:
            prefill.close()

    def close_drafter(self) -> None:
        """Free what its strategy holds for it; the next step opens another drafter."""
        drafter, self.drafter = self.drafter, None
        if drafter is not None:
            drafter.close()

    def advance(
        self,
        choices: Sequence[Choice],
        logits: Sequence[Floats],
        events: list[Event],
        taps: Sequence[Mapping[int, Floats]] = (),
    ) -> None:
        """Commit tokens: sampler, stopper and tokens move on; one event a token, up to the one that ends
        the answer, is added to `events`. Where one fails, the events before it are there, and the sample must end.
        """
        for place, choice in enumerate(choices):
            self.sampler.commit(choice.token)
            self.tokens.append(choice.token)
            text, reason = self.stopper.push(choice.token)
            kept, states = logits[place] if logits else None, taps[place] if taps else None
            events.append(self._event(self.index, choice.token, text, choice, reason, logits=kept, taps=states))
            if reason is not None:
                break

    def endings(self, reason: str, text: str, error: Exception | None = None) -> list[Event]:
        """Events that end the sample, and those not forked from it yet, without a token. text: what was held back."""
        ended = range(self.index, self.index + self.samples)
        return [self._event(index, None, text, None, reason, error=error) for index in ended]

    def _event(
        self, index: int, token: int | None, text: str, choice: Choice | None, reason: str | None, **more: Any
    ) -> Event:
        logprob = None if choice is None else choice.logprob
        return Event(self.answer.identity, index, token, text, logprob, reason, **more)
