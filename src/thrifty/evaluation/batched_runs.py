"""Several measurements with one engine at the same time, each written as if it were alone.

A measurement submits requests and reads them. Here each runs in a thread of its own, one at a time: when all of them
wait for a token, the engine takes one step for all of their sequences. So its steps have batches, and each measurement
sees what it would see alone: no sequence is ahead of who reads it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from thrifty.engine.request import Handle
from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.decoding.sampling_parameters import SamplingParameters
    from thrifty.engine.answer import Answer, Listener
    from thrifty.engine.engine import Engine
    from thrifty.engine.request import Request

Result = TypeVar("Result")
Job = Callable[["Engine"], Result]
WIDTH = 8  # measurements at a time, at most
ROOM = 512 * 10**6  # bytes of their caches together


class _Ended(BaseException):
    """Another measurement failed, so this one ends as well."""


def run_batched(engine: Engine, jobs: Sequence[Job[Result]], width: int = WIDTH) -> Iterator[tuple[int, Result]]:
    """(place, result) of every job, as they end. width: how many run at a time, at least 1.

    The first error of a job, and any error of the engine's step, ends all; it is raised after the results that there
    are, once all have given their requests back. So does leaving the loop.
    """
    runs = _Runs(engine, jobs, max(1, width))
    try:
        yield from runs.results()
    finally:
        runs.end()


def width_of(engine: Engine, tokens: int) -> int:
    """How many runs of so many tokens there is room for at a time, with the full cache."""
    each = engine.cache_footprint((), tokens, tokens + 1).peak_bytes
    return max(1, min(WIDTH, ROOM // max(1, each)))


class _Runs(Generic[Result]):
    """The jobs, their threads and whose turn it is.

    A thread holds the condition's lock whenever it does anything, so that never two of them touch the engine.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job[Result]], width: int) -> None:
        self._engine, self._width = engine, width
        self._waiting_jobs = deque(enumerate(jobs))
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._at_work = 0  # threads that do something, and wait for no token
        self._readers: list[tuple[Handle, bool]] = []  # what the others wait for
        self._steps = 0
        self._done: deque[tuple[int, Result]] = deque()
        self._error: BaseException | None = None
        self._ending = False

    def results(self) -> Iterator[tuple[int, Result]]:
        """As they come."""
        while True:
            with self._changed:
                self._settle()
                while self._waiting_jobs and len(self._readers) < self._width and not self._error:
                    self._start(*self._waiting_jobs.popleft())
                    self._settle()  # so that requests come in the order of the jobs
                ready, error = list(self._done), self._error
                finished = not self._readers and not self._waiting_jobs
                self._done.clear()
                if not ready and not finished and error is None:
                    self._step()
            yield from ready
            if error is not None:
                raise error
            if finished:
                return

    def end(self) -> None:
        """Let every thread come to its end."""
        with self._changed:
            self._ending = True
            self._release()
        for thread in self._threads:
            thread.join()

    def wait(self, handle: Handle, together: bool) -> None:
        """Of a job's thread: until the engine has taken its next step. Raises ThriftyError in any other thread, whose
        waiting would have no end.
        """
        if threading.current_thread() not in self._threads:
            raise ThriftyError(
                f"request {handle.identity} was submitted by a measurement and is read outside its thread, or after "
                "its end: read it to its end inside the measurement"
            )
        if self._ending:
            raise _Ended
        self._readers.append((handle, together))
        self._at_work -= 1
        self._changed.notify_all()
        before = self._steps
        while self._steps == before:
            self._changed.wait()
        if self._ending:
            raise _Ended

    def _settle(self) -> None:
        """Wait until every thread waits for a token, or is done."""
        while self._at_work:
            self._changed.wait()

    def _start(self, place: int, job: Job[Result]) -> None:
        thread = threading.Thread(target=self._run, args=(place, job), name=f"measurement {place}", daemon=True)
        self._at_work += 1
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._at_work -= 1
            self._threads.remove(thread)
            raise

    def _run(self, place: int, job: Job[Result]) -> None:
        with self._changed:
            try:
                self._done.append((place, job(cast("Engine", _SteppedEngine(self._engine, self)))))
            except _Ended:
                pass
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._at_work -= 1
                self._changed.notify_all()

    def _step(self) -> None:
        """One step for whoever waits; several tokens of it only where nobody looks at each."""
        try:
            self._engine.drive(
                next((handle for handle, _ in self._readers if not handle.finished), self._readers[0][0]),
                together=all(together for _, together in self._readers),
            )
        finally:
            self._release()

    def _release(self) -> None:
        """Everybody who waits for a token goes on."""
        self._at_work += len(self._readers)
        self._readers.clear()
        self._steps += 1
        self._changed.notify_all()


class _SteppedEngine:
    """The engine as a job sees it: its handles wait for the common step. Everything else is the engine's."""

    def __init__(self, engine: Engine, runs: _Runs[Any]) -> None:
        self._engine, self._runs = engine, runs

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """As the engine's."""
        return self._own(self._engine.submit(request, listener))

    def fork(
        self,
        handle: Handle,
        sample: int,
        sampling: SamplingParameters | None,
        forced: Sequence[int] = (),
        free: int = 0,
    ) -> Handle:
        """As the engine's."""
        return self._own(self._engine.fork(handle, sample, sampling, forced, free))

    def drive(self, handle: Handle, together: bool = False) -> None:
        """Wait for the common step."""
        self._runs.wait(handle, together)

    def cancel(self, handle: Handle) -> None:
        """As the engine's."""
        self._engine.cancel(handle)

    def abandon(self, answer: Answer) -> None:
        """As the engine's."""
        self._engine.abandon(answer)

    def _own(self, handle: Handle) -> Handle:
        return Handle(self, handle.request, handle.answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
