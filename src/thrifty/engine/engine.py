"""The engine: requests in, events out, one step at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine import inspection
from thrifty.engine.admission.adapter_shelf import AdapterShelf
from thrifty.engine.admission.intake import Intake
from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.admission.process_memory import budget_of
from thrifty.engine.admission.resizing import resize
from thrifty.engine.ahead import Ahead
from thrifty.engine.answer import Answer, Event, Listener
from thrifty.engine.aside import Aside
from thrifty.engine.drafting.models import LoadDraft, load_draft
from thrifty.engine.inspected import Inspected
from thrifty.engine.options import EngineOptions
from thrifty.engine.plan.native_runner import choose_runner
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.publishing import Publisher
from thrifty.engine.reading_ahead import ReadingAhead
from thrifty.engine.request import Handle, Request, check_request
from thrifty.engine.running import Running, State
from thrifty.engine.scheduler import Scheduler
from thrifty.engine.sequences import Sequences
from thrifty.engine.sessions.access import SessionAccess
from thrifty.engine.step import PrefillStep, Stepper
from thrifty.engine.turn import Turn
from thrifty.errors import PromptError, ThriftyError
from thrifty.kernels import dispatch
from thrifty.kernels.threads import pool_threads

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.runner import Runner
    from thrifty.models.adapters import Adapter
    from thrifty.models.model import Model


class Engine(Inspected):
    """Continuous batching over one model inside one memory budget.

    Every method may be called from any thread; one lock orders them.

    memory: the budget in bytes or as "150MB" for weights, cache peak and workspace; None: no bound. process_memory: the
    same for the whole process as the system counts it: what it holds now, and a little for what comes, is taken off,
    and the rest is the budget.

    threads: of native code; None leaves them as they are. They are the process's: the last engine's number holds for
    all, and a warning says where that changes what an open one asked for. context: longest prompt plus answer in
    tokens; None: the model's own. cache, decoding, programs: a recipe's tables (the last are those of its stage
    "prompt"), for requests that bring none. native: False runs the slow torch reference instead of native code. batch:
    sequences that decode together. queue: requests that may wait. chunk: prefill tokens a step, a multiple of 128.
    prefill_slice_ms: about how long a piece of prefill may hold up those that decode; 0 runs whole chunks whoever
    waits. disk: folder of the disk tier (default: the system's temporary one). prefix_tree: share prompts' beginnings.
    conversation_disk: bytes on the disk tier, or "2GB", for prompts that policies compress, so that later ones begin
    with them; None: none are kept. session_bytes: what sessions (`Request.session`) may hold, in memory and on disk.
    adapters: name → a directory that PEFT wrote, or an Adapter (see `add_adapter`). drafts: names or paths of models
    that a request's own `decoding` may draft with, beside that of the engine's; all others are refused. load_draft:
    loads one when it is first asked for. runner: one to use instead of choosing.

    Raises BudgetError where the budget cannot hold one token, with the number that could, and PromptError for an option
    of a wrong type or size.
    """

    def __init__(
        self,
        model: Model,
        *,
        memory: int | str | None = None,
        process_memory: int | str | None = None,
        threads: int | None = None,
        context: int | None = None,
        cache: Sequence[Mapping[str, Any]] = (),
        decoding: Sequence[Mapping[str, Any]] = (),
        programs: Sequence[Mapping[str, Any]] = (),
        native: bool | None = None,
        batch: int = 32,
        queue: int = 256,
        chunk: int = 256,
        prefill_slice_ms: float = 25.0,
        disk: str | os.PathLike[str] | None = None,
        prefix_tree: bool = True,
        conversation_disk: int | str | None = None,
        session_bytes: int | str = "1GB",
        adapters: Mapping[str, Adapter | str | os.PathLike[str]] | None = None,
        drafts: Sequence[str] = (),
        load_draft: LoadDraft = load_draft,
        runner: Runner | None = None,
    ) -> None:
        """See the class."""
        options = EngineOptions.of(
            threads=threads, context=context, native=native, batch=batch, queue=queue, chunk=chunk,
            prefill_slice_ms=prefill_slice_ms, prefix_tree=prefix_tree, disk=disk, drafts=drafts,
            conversation_disk=conversation_disk, session_bytes=session_bytes,
        )  # fmt: skip
        budget, beside = budget_of(memory, process_memory, model)
        rows = max(options.batch, options.chunk)
        self.model = model
        if options.threads is not None:
            pool_threads().set(options.threads, self)
        self.runner = runner or choose_runner(model, native=options.native, rows=rows)
        self.memory = EngineMemory(
            model, self.runner, budget, chunk=options.chunk, disk=options.disk, prefix_tree=options.prefix_tree,
            conversation_disk=options.conversation_disk, session_bytes=options.session_bytes, beside=beside,
            batch=options.batch, load_draft=load_draft,
        )  # fmt: skip
        self._adapters = AdapterShelf(model.config, self.runner, self.memory, adapters or {})
        self.intake = Intake(
            model, self.memory, context=options.context, cache=cache, decoding=decoding, programs=programs,
            batch=options.batch, chunk=options.chunk, adapters=self._adapters, drafts=options.drafts,
        )  # fmt: skip
        self._closed = False
        self._assemble(options)

    def _assemble(self, options: EngineOptions) -> None:
        """Put together what schedules, computes and publishes, over the runner, the memory and the intake."""
        memory, chunk = self.memory, options.chunk
        self._scheduler = Scheduler(memory, options.batch, options.queue)
        waiting = None if (module := dispatch.native()) is None else module.Waiting()
        self._turn = Turn(self._cancel, waiting)
        self._ahead = ReadingAhead(self.memory.cache.conversations is not None)
        self._publisher = Publisher(self._scheduler, self.memory, self._turn, self._ahead)
        self._sequences = Sequences(self.model, self.intake.end_ids, self.memory, self._scheduler, self._publisher)
        prefill = PrefillStep(self.runner, self.memory, self._sequences, options.chunk, Pace(options.prefill_slice_ms))
        ahead = None if waiting is None else Ahead(waiting)
        self._stepper = Stepper(self.runner, self._scheduler, prefill, self._publisher, self._turn, ahead)
        self._aside = Aside(self.model, self.runner, memory, chunk, self._turn, self._publisher, self._check_open)

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """Queue a request. It is checked here: what can never be served is refused now, with what would.

        listener: takes the events instead of the handle's queue, then None; see `Listener`.

        Raises PromptError (context, vocabulary, parameters), BudgetError (peak above the budget), RecipeError
        (cache tables), QueueFullError (with `retry_after` in seconds). Whatever it raises, nothing is queued.
        """
        check_request(request)
        answer = Answer(request.identity, request.samples, len(request.prompt), listener)
        try:
            with self._turn:
                self._check_open()
                self._publisher.mend()
                self._stop_reading()
                if request.session is not None:
                    request = replace(request, prompt=self.memory.sessions.aligned(request, self.model.tokenizer))
                    answer.usage.prompt_tokens = answer.usage.kept_tokens = len(request.prompt)
                ticket = self.intake.check(request, self._scheduler.sequences)
                self._sequences.submit(self._sequences.make(answer, ticket))
            return Handle(self, request, answer)
        except BaseException:
            self._cancel(answer)
            raise

    def read_ahead(self) -> bool:
        """For when nobody asks for anything: begin to read an answer again, as part of the prompt that the next turn
        begins with (see `reading_ahead`). It goes on with `step`, and ends as soon as a request comes. Returns whether
        there was one.
        """
        with self._turn:
            request = None if self._closed or self.busy else self._ahead.next()
            if request is None:
                return False
            answer = Answer(request.identity, 1, len(request.prompt), lambda event: None)
            try:
                self._scheduler.submit(self._sequences.make(answer, self.intake.check(request)))
            except Exception:  # it does not fit any more, or its adapter went: nobody asked for it
                return self.read_ahead()
            return True

    def compile(self, grammar: Grammar) -> None:
        """Have a grammar ready for `submit`, which compiles one that is not. No other call has to wait for this one.

        Raises PromptError that says why it cannot be compiled, MissingExtra without `llguidance`.
        """
        self.intake.grammars.compile(grammar)

    def step(self) -> list[Event]:
        """Schedule, run, sample, publish: at most one decode batch and one piece of prefill (a slice of
        it where anyone decodes).

        All or nothing: signal handlers wait until it is over, and an error ends the request that met it, as its own
        error, while all others get their tokens. Raised is only what belongs to no request, or is no Exception
        (KeyboardInterrupt, SystemExit), and that after the results are published: they are with the handles.
        """
        with self._turn:
            return self._take_step(together=False)

    def _take_step(self, together: bool) -> list[Event]:
        """Of the thread that has the turn. together: several tokens at once, where nobody listens to each."""
        if self._publisher.telling:
            raise ThriftyError("a listener called Engine.step: a step is under way, its events come after these")
        self._publisher.mend()
        return self._publisher.publish(self._stepper.outcomes(together))

    def cache_of(self, handle: Handle, sample: int = 0) -> SequenceCache | None:
        """The cache that a running sample holds now, to look at between steps; None where it holds none."""
        with self._turn:
            sequence = self._scheduler.sequence_of(handle.answer, sample)
            return None if sequence is None else sequence.cache

    def wait_for(self, others_hold: Callable[[], bool]) -> None:
        """Let requests wait that have no room even alone while this says that somebody beside them holds memory, and
        gives it back whatever they do. Else such a request ends with a BudgetError.
        """
        self._scheduler.others_hold = others_hold

    @property
    def busy(self) -> bool:
        """True while any request is unfinished."""
        return len(self._scheduler) > 0

    def drive(self, handle: Handle, together: bool = False) -> None:
        """One step on behalf of a waiting handle; together: it waits for the end, so that one call of native code may
        decode several tokens where nothing else is to be done. Raises ThriftyError where nothing is left that could
        finish it, and what `step` raises.
        """
        with self._turn:
            if handle.answer.finished:
                return
            if not self.busy:
                raise ThriftyError(f"request {handle.identity} belongs to another engine, or was lost")
            self._take_step(together)

    @property
    def sessions(self) -> SessionAccess:
        """The conversations that go on from their own caches; see `Request.session`."""
        return SessionAccess(self.memory.sessions, self._turn)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that requests may ask for."""
        return self._adapters.names

    def add_adapter(self, name: str, source: Adapter | str | os.PathLike[str]) -> None:
        """Let requests ask for an adapter by name: a directory that PEFT wrote, or an Adapter. Its bytes are charged to
        the budget.

        Raises PromptError for a name that is taken, CheckpointError for what does not fit the model, and BudgetError,
        also where an accepted request could not end beside it; nothing is added then.
        """
        with self._turn:
            self._check_open()
            self._publisher.mend()
            self._adapters.add(name, source, self._scheduler.sequences())

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter and give its bytes back. Raises PromptError where there is none of the name, or a request
        uses it.
        """
        with self._turn:
            self._publisher.mend()
            self._adapters.get(name)
            users = sum(sequence.ticket.uses_adapter(name) for sequence in self._scheduler.sequences())
            if users:
                raise PromptError(f"{users} sequences use the adapter {name!r}; wait for their end, or cancel them")
            self.memory.drafts.forget_adapter(name)
            self._adapters.remove(name)

    def resize_memory(self, memory: int) -> int:
        """Change the budget to so many bytes, at most what it was opened with; see `resizing.resize`."""
        with self._turn:
            self._publisher.mend()
            return resize(self.memory, memory, self._scheduler.sequences())

    def cancel(self, handle: Handle) -> None:
        """End a request and free its memory before the call returns. Without effect on a finished request."""
        self._cancel(handle.answer)

    def abandon(self, answer: Answer) -> None:
        """For finalisers, it never waits: the request is cancelled now, or when the call that is under way ends."""
        self._turn.abandon(answer)

    def fork(
        self,
        handle: Handle,
        sample: int,
        sampling: SamplingParameters | None,
        forced: Sequence[int] = (),
        free: int = 0,
    ) -> Handle:
        """See `Handle.fork`."""
        answer: Answer | None = None
        try:
            with self._turn:
                self._publisher.mend()
                parent = self._decoding(handle, sample)
                if parent.parked:
                    raise PromptError(f"sample {sample} of {handle.identity} waits for memory; fork it once it goes on")
                stream = (parent.sampler.stream + 1 << 20) + handle.forks + 1
                ticket = self.intake.check_fork(parent, sampling, stream, forced, free)
                answer = Answer(ticket.request.identity, 1, len(parent.tokens))
                self._sequences.branch(parent, self._sequences.make(answer, ticket))
                handle.forks += 1
            return Handle(self, ticket.request, answer)
        except BaseException:
            if answer is not None:
                self._cancel(answer)
            raise

    def close(self) -> None:
        """Cancel everything and free all but the weights. The engine takes no requests afterwards."""
        with self._turn:
            self._closed = True
            pool_threads().release(self)
            answers = list(dict.fromkeys(sequence.answer for sequence in self._scheduler.sequences()))
            for answer in answers:
                self._publisher.finish(answer, "cancelled")
            self._publisher.tell(answers)
            self._adapters.clear()
            try:
                self.memory.close()
            except BaseException as error:
                self._turn.note_interrupt(error)
                self._publisher.sound = False
                self._publisher.mend()
                self.memory.close()

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: the runner and why it was chosen, budget and ledger, queue lengths."""
        with self._turn:
            return inspection.describe(self.runner, self.memory, self.intake, self._scheduler, self.adapters)

    def _check_open(self) -> None:
        if self._closed:
            raise ThriftyError("the engine is closed; make a new one")

    def _cancel(self, answer: Answer) -> None:
        with self._turn:
            self._publisher.finish(answer, "cancelled")
            self._publisher.tell([answer])

    def _stop_reading(self) -> None:
        """A request comes first."""
        identity, self._ahead.reading = self._ahead.reading, None
        for sequence in self._scheduler.sequences() if identity else ():
            if sequence.answer.identity == identity:
                self._publisher.finish(sequence.answer, "cancelled")
                self._ahead.put_back()

    def _decoding(self, handle: Handle, sample: int) -> Running:
        if (own := self._scheduler.sequence_of(handle.answer, sample)) is not None and own.state is State.DECODING:
            return own
        raise PromptError(f"sample {sample} of request {handle.identity} is not decoding: it can be forked while it is")
