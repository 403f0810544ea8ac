"""Making sequences: those of a request when it is submitted, and those that branch off from one that runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from thrifty.decoding.sampling import Sampler
from thrifty.decoding.stopping import NoText, Stopper
from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.answer import Answer
from thrifty.engine.publishing import Publisher
from thrifty.engine.running import Running, State
from thrifty.engine.scheduler import Scheduler
from thrifty.engine.ticket import Ticket

if TYPE_CHECKING:
    from thrifty.models.model import Model


class Sequences:
    """Makes sequences, and counts them in the order of their arrival."""

    def __init__(
        self, model: Model, end_ids: Collection[int], memory: EngineMemory, scheduler: Scheduler, publisher: Publisher
    ) -> None:
        """end_ids: tokens that end an answer. publisher: ends siblings where one of them cannot be made."""
        self._model = model
        self._end_ids = end_ids
        self._memory = memory
        self._scheduler = scheduler
        self._publisher = publisher
        self._arrivals = 0

    def make(self, answer: Answer, ticket: Ticket, index: int = 0, sampler: Sampler | None = None) -> Running:
        """A sequence that waits: sample `index` of an answer. sampler: its own, where it isn't the ticket's."""
        self._arrivals += 1
        tokenizer = self._model.tokenizer
        stream = NoText() if tokenizer is None else tokenizer.stream(after=ticket.request.token_ids)
        forced = len(ticket.request.forced or ())
        stopper = Stopper(ticket.request.sampling, stream, self._end_ids, ticket.maximum_tokens, forced)
        return Running(answer, index, self._arrivals, ticket, sampler or ticket.sampler, stopper)

    def submit(self, sequence: Running) -> None:
        """Queue a sequence, with the session that its request names. Raises QueueFullError and SessionError, with
        nothing changed.
        """
        request, policies, sessions = sequence.ticket.request, sequence.ticket.policies, self._memory.sessions
        if request.session is None:
            self._scheduler.submit(sequence)
            return
        kind = self._memory.session_kind(sequence)
        sessions.check(request, policies, kind)
        self._scheduler.submit(sequence)
        sequence.session = sessions.begin(request, policies, kind)

    def split(self, sequence: Running) -> list[Running]:
        """A sequence whose prompt is computed and its siblings, which share its prompt by reference. All or none."""
        family = [sequence]
        try:
            for index in range(1, sequence.samples):
                sampler = sequence.sampler.fork(stream=index)
                family.append(self.make(sequence.answer, sequence.ticket, index, sampler))
                self.branch(sequence, family[-1])
        except BaseException:
            self._publisher.sound = False
            for sibling in family[1:]:
                self._publisher.end(sibling)
            raise
        sequence.state, sequence.prefill = State.DECODING, None
        return family

    def branch(self, parent: Running, child: Running) -> None:
        """Let `child` decode beside its parent, with a cache that shares the parent's. Raises BudgetError."""
        try:
            self._memory.fork(parent, child)
            child.state = State.DECODING
            child.prompt_length = parent.prompt_length
            self._scheduler.join(child)
        except BaseException:
            self._publisher.sound = False
            raise
