"""Publishing a step: all results are committed, then what is over ends, then everybody is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.answer import Answer, Event, own_error
from thrifty.engine.decode import Outcome
from thrifty.engine.reading_ahead import ReadingAhead
from thrifty.engine.running import Running
from thrifty.engine.scheduler import Scheduler
from thrifty.engine.turn import Turn


class Publisher:
    """Commits outcomes and ends sequences, so that whatever fails is the error of one request.

    sound: False after an error in the middle of things; who holds which bytes is counted again then, before anything
    is freed. telling: how many listeners are being called.
    """

    def __init__(self, scheduler: Scheduler, memory: EngineMemory, turn: Turn, ahead: ReadingAhead) -> None:
        """ahead: told of answers that ended well."""
        self.sound = True
        self.telling = 0
        self._scheduler = scheduler
        self._memory = memory
        self._turn = turn
        self._ahead = ahead

    def publish(self, outcomes: Sequence[Outcome]) -> list[Event]:
        """Commit what a step chose, end what is over, hand the events out: each for all before the next."""
        committed = [(outcome.sequence, *self._commit(outcome)) for outcome in outcomes]
        for sequence, own, over in committed:
            if over:
                reason = own[-1].finish_reason
                self.end(sequence, whole=reason != "error", done=reason in ("stop", "length"))
        for sequence, own, _ in committed:
            self._record(sequence.answer, own)
        events = [event for _, own, _ in committed for event in own]
        return events + self.tell(dict.fromkeys(sequence.answer for sequence, _, _ in committed))

    def finish(self, answer: Answer, reason: str, error: Exception | None = None) -> list[Event]:
        """End all samples of a request that still run; returns their last events, which are recorded and not told."""
        mine = [sequence for sequence in self._scheduler.sequences() if sequence.answer is answer]
        events = [event for sequence in mine for event in self._endings(sequence, reason, error)]
        for sequence in mine:
            self.end(sequence, whole=error is None)
        self._record(answer, events)
        return events

    def tell(self, answers: Iterable[Answer]) -> list[Event]:
        """Pass events to listeners. One that raises ends its own request; returns the events of such ends."""
        events: list[Event] = []
        for answer in answers:
            self.telling += 1
            try:
                answer.tell()
            except BaseException as error:
                self._turn.note_interrupt(error)
                events += self.finish(answer, "error", own_error(error))
                answer.fail(own_error(error))
            finally:
                self.telling -= 1
        return events

    def end(self, sequence: Running, *, whole: bool = False, done: bool = False) -> None:
        """Forget a sequence and free what it holds. An error in freeing is mended; where that fails too, it is raised
        when the call into the engine has done its work.

        whole: no error ended it: what it holds may serve those that begin alike. done: it came to its own end.
        """
        for last in (False, True):
            try:
                self.mend()
                if whole and not last:
                    self._memory.publish_answer(sequence)
                if done and not last:
                    self._memory.keep_session(sequence)
                    self._ahead.note(sequence)
                self._memory.release(sequence)
                break
            except BaseException as error:
                self.sound = False
                if last:
                    self._turn.note(error)
                else:
                    self._turn.note_interrupt(error)
        self._scheduler.remove(sequence)

    def mend(self) -> None:
        """After an error in the middle of things, count again who holds which bytes."""
        if not self.sound:
            self._memory.recount(self._scheduler.sequences())
            self.sound = True

    def _commit(self, outcome: Outcome) -> tuple[list[Event], bool]:
        """One sequence's events, and whether it is over. Whatever fails here is its own error, and ends it."""
        sequence, error = outcome.sequence, outcome.error
        events: list[Event] = []
        if error is None:
            try:
                sequence.advance(outcome.choices, outcome.logits, events, outcome.taps)
                return events, events[-1].finish_reason is not None
            except BaseException as raised:
                error = raised
        self.sound = False
        self._turn.note_interrupt(error)
        return events + self._endings(sequence, "error", own_error(error)), True

    def _endings(self, sequence: Running, reason: str, error: Exception | None) -> list[Event]:
        """The last events of a sequence; its stopper may fail over the text that it held back."""
        try:
            return sequence.endings(reason, sequence.stopper.flush(), error)
        except BaseException as raised:
            self._turn.note_interrupt(raised)
            return sequence.endings("error", "", error or own_error(raised))

    def _record(self, answer: Answer, events: Sequence[Event]) -> None:
        try:
            for event in events:
                answer.record(event)
        except BaseException as error:
            self._turn.note_interrupt(error)
            self.finish(answer, "error", own_error(error))
            answer.fail(own_error(error))
