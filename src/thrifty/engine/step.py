"""One step of the engine: what the scheduler picked is run. Committing and telling what came of it is `publishing`."""

from __future__ import annotations

from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.ahead import Ahead
from thrifty.engine.decode import Outcome, decode, first_choices, without_outcome
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.prefill.prefill import start_prefill
from thrifty.engine.prefill.programmed import ProgrammedPrefill
from thrifty.engine.publishing import Publisher
from thrifty.engine.runner import Runner
from thrifty.engine.running import Prefill, Running
from thrifty.engine.scheduler import Scheduler
from thrifty.engine.sequences import Sequences
from thrifty.engine.turn import Turn


class PrefillStep:
    """Computes prompts piece by piece. pace: how long a piece may take beside sequences that decode."""

    def __init__(self, runner: Runner, memory: EngineMemory, sequences: Sequences, chunk: int, pace: Pace) -> None:
        """chunk: tokens of a prompt that go through the layers together, a multiple of 128."""
        self.pace = pace
        self._runner = runner
        self._memory = memory
        self._sequences = sequences
        self._chunk = chunk

    def run(self, sequence: Running, sliced: bool, outcomes: list[Outcome]) -> None:
        """The next piece of a prompt. With the last one, its samples fork and each chooses its first token."""
        family = [sequence]
        try:
            if sequence.prefill is None:
                sequence.prefill = self._start(sequence)
            scores = sequence.prefill.advance(sliced)
            if scores is None:
                return
            self._memory.settle(sequence)
            family = self._sequences.split(sequence)
            first_choices(family, scores, outcomes)
        except BaseException as error:
            missing = without_outcome(family, outcomes)
            outcomes += [Outcome(sample, error=error) for sample in missing]
            if not missing:
                raise

    def _start(self, sequence: Running) -> Prefill:
        if sequence.reading is not None:
            return ProgrammedPrefill(self._runner, sequence, sequence.reading, self._chunk, self._memory, self.pace)
        return start_prefill(self._runner, sequence, self._chunk, self._memory.publish, self.pace)


class Stepper:
    """Runs at most one batch of decoding sequences and one piece of prefill.

    ahead: what native code can do without Python, it does; None: all rows go through `Runner.decode`.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        prefill: PrefillStep,
        publisher: Publisher,
        turn: Turn,
        ahead: Ahead | None,
    ) -> None:
        self.ahead = ahead
        self._runner = runner
        self._scheduler = scheduler
        self._prefill = prefill
        self._publisher = publisher
        self._turn = turn

    def outcomes(self, together: bool) -> list[Outcome]:
        """Run what is scheduled. Errors of sequences are among the outcomes; any other is raised after the step, and
        what had come of it by then is published. together: several tokens at once, where nobody listens to each.
        """
        outcomes: list[Outcome] = []
        try:
            work = self._scheduler.schedule()
            outcomes += [Outcome(sequence, error=error) for sequence, error in work.stuck]
            listened = any(sequence.answer.listened for sequence in work.decode)
            together = together and work.prefill is None and not listened
            decode(self._runner, work.decode, outcomes, self._turn.note_interrupt, self.ahead, together)
            if work.prefill is not None:
                self._prefill.run(work.prefill, self._prefill.pace.cuts and bool(work.decode), outcomes)
        except BaseException as error:
            self._publisher.sound = False
            self._turn.note(error)
        return outcomes
