"""What `thrifty compress` says while it works: how far it is, how long it will take, and what a stop costs."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from thrifty.cli.shared import output
from thrifty.cli.shared.progress import Beside, Steps, progress
from thrifty.cli.shared.ticker import seconds
from thrifty.weights.results import LAYERS, Phase

LONG = 5.0  # seconds from which on a time is told before


class Work:
    """Shows units as steps, and the phases of a technique beside them. Within it; model: what is compressed, by name.

    A time is told as soon as it is known: after the first layer of a technique, and the first step of a phase.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._stack = ExitStack()
        self._steps: Steps | None = None
        self._phase: Phase | None = None
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is KeyboardInterrupt:
            output.note(stopped(self._phase))

    def show(self, done: int, total: int) -> None:
        """So many units are done: see `weights.compressing.pipeline.Watch`."""
        if self._steps is None:
            self._steps = self._stack.enter_context(progress(f"compressing {self._model}", total))
        if done:
            self._steps.total = total
            self._steps.advance()

    def tell(self, phase: Phase) -> None:
        """How far a phase is, or how long the layers will take."""
        key = (phase.technique, phase.what)
        if key not in self._told and phase.seconds_left >= LONG:
            source = "the first layer" if phase.what == LAYERS else "the first step"
            output.note(f"{phase.technique}: about {seconds(phase.seconds_left)} for {phase.what}, by {source}")
        self._told.add(key)
        if self._steps is None:
            return
        if phase.what == LAYERS:
            self._steps.pace = phase.seconds_left / max(1, phase.total - phase.done)
            return
        self._phase = phase if phase.done < phase.total else None
        text = f"{phase.technique}, {phase.what}"
        self._steps.show_beside(Beside(text, phase.done, phase.total, phase.seconds_left))


def stopped(phase: Phase | None) -> str:
    """What becomes of the work where Ctrl-C ends it. phase: what it was in the middle of."""
    lost = 0 if phase is None else phase.done - phase.kept
    kept = "what is done is kept, and the same command goes on from there"
    if phase is None or not lost:
        return f"stopped: {kept}"
    return f"stopped: {kept}; of {phase.done} steps of {phase.what} ({phase.technique}) the last {lost} are taken again"
