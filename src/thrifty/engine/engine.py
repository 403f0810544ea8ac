"""The engine: requests in, events out, one step at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.decoding.sampling import SamplingParameters
from thrifty.engine.request import Event, Handle, Request

if TYPE_CHECKING:
    from thrifty.models import Model


class Engine:
    """Continuous batching over one model inside one memory budget.

    Every method may be called from any thread; one lock orders them.
    """

    def __init__(
        self,
        model: Model,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        context: int | None = None,
        cache: Sequence[Mapping[str, Any]] = (),
        decoding: Sequence[Mapping[str, Any]] = (),
        native: bool | None = None,
        batch: int = 32,
        queue: int = 256,
        chunk: int = 512,
        disk: str | Path | None = None,
        prefix_tree: bool = True,
    ) -> None:
        """memory: the budget in bytes or as "150MB" for weights, cache peak and workspace; None: no bound.

        context: longest prompt plus answer in tokens; None: the model's own. cache, decoding: a recipe's
        tables, used
        by requests that bring none. native: True insists on the native plan, False forbids it, None takes
        it where it
        can. batch: sequences that decode together. queue: requests that may wait. chunk: prefill tokens a
        step,
        a multiple of 128. disk: folder of the disk tier (default: the system's temporary one).

        Raises BudgetError where the budget cannot hold one token, with the number that could.
        """
        raise NotImplementedError

    def submit(self, request: Request) -> Handle:
        """Queue a request. It is checked here: what can never be served is refused now, with the number
        that would.

        Raises PromptError (context, vocabulary, parameters), BudgetError (peak above the budget), RecipeError
        (cache tables), QueueFullError (with `retry_after` in seconds).
        """
        raise NotImplementedError

    def step(self) -> list[Event]:
        """Schedule, run, sample, publish: at most one decode batch and one piece of prefill."""
        raise NotImplementedError

    def drive(self, handle: Handle) -> None:
        """One step on behalf of a waiting handle, or a short wait where another thread runs the loop."""
        raise NotImplementedError

    def cancel(self, handle: Handle) -> None:
        """End a request and free its memory before the call returns."""
        raise NotImplementedError

    def fork(self, handle: Handle, sample: int, sampling: SamplingParameters | None) -> Handle:
        """See `Handle.fork`."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel everything and free all but the weights. The engine takes no requests afterwards."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: the runner and why it was chosen, the budget, ledger peak and steady, queue
        lengths.
        """
        raise NotImplementedError
