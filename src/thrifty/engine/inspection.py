"""What an engine tells of itself: the facts that hold while it lives, and what it holds now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.engine.admission.intake import Intake
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.runner import Runner
    from thrifty.engine.scheduler import Scheduler


@dataclass(frozen=True)
class EngineProbe:
    """Facts that hold while the engine lives."""

    #: Name of the runner, "native" or "reference".
    runner: str
    #: Why it was chosen.
    reason: str
    #: Whether native code runs the steps; only then can they be profiled.
    native: bool
    #: Threads of native code. All engines of a process share them.
    threads: int
    #: Most tokens of a prompt and its answer together.
    context: int
    #: Tokens that end an answer.
    end_ids: frozenset[int]
    #: Bytes for weights, caches and workspace; None: no bound.
    budget: int | None
    #: Bytes of the weights in memory: without an embedding that is read from its file.
    weights: int
    #: Bytes of buffers and activations, rows of logits left out.
    workspace: int
    #: The model as cache policies are told of it.
    cache_model: ModelInfo


@dataclass(frozen=True)
class Held:
    """Bytes of one category of the ledger. peak: the most since the engine was made."""

    current: int
    peak: int


@dataclass(frozen=True)
class EngineUsage:
    """What an engine holds at one moment, in bytes, and who is in it."""

    #: All that the ledger counts.
    current: int
    #: The most since the engine was made, or since `Engine.reset_peak`.
    peak: int
    #: `current` without what a step takes and gives back: workspace, and scratch of a layer.
    steady: int
    #: By category: "weights", "cache", "tree", "index", "scratch", "workspace" …
    categories: Mapping[str, Held]
    #: In pages of the arena.
    arena: int
    #: Moved to the disk tier.
    disk: int
    #: Of `current`: in prefixes that the tree keeps for later prompts.
    tree: int
    #: Sequences that wait for their admission, that are computed, and that wait for memory to go on.
    waiting: int
    active: int
    parked: int

    def bytes_of(self, category: str) -> int:
        """Bytes that a category holds, 0 where there is none of it."""
        held = self.categories.get(category)
        return 0 if held is None else held.current


def probe(runner: Runner, memory: EngineMemory, intake: Intake) -> EngineProbe:
    """See `Engine.probe`."""
    return EngineProbe(
        runner=runner.name,
        reason=runner.reason,
        native=isinstance(runner, NativeRunner),
        threads=dispatch.threads(),
        context=intake.context,
        end_ids=intake.end_ids,
        budget=memory.ledger.budget,
        weights=memory.ledger.bytes_of("weights"),
        workspace=memory.workspace,
        cache_model=memory.cache.model,
    )


def usage(memory: EngineMemory, scheduler: Scheduler) -> EngineUsage:
    """See `Engine.usage`."""
    held = memory.describe()
    categories = {name: Held(**own) for name, own in held["categories"].items()}
    named = {name: held[name] for name in ("current", "peak", "steady", "arena", "disk", "tree")}
    return EngineUsage(categories=categories, **named, **scheduler.describe())


def describe(
    runner: Runner, memory: EngineMemory, intake: Intake, scheduler: Scheduler, adapters: Sequence[str]
) -> dict[str, Any]:
    """See `Engine.describe`."""
    return {
        "runner": {"name": runner.name, "reason": runner.reason},
        "memory": memory.describe(),
        "adapters": list(adapters),
        "queues": scheduler.describe(),
        "context": intake.context,
    }


def profile(runner: Runner) -> AbstractContextManager[Mapping[str, float]]:
    """See `Engine.profile`."""
    if not isinstance(runner, NativeRunner):
        raise KernelError(f"only the native plan can be profiled; this model runs as {runner.name}: {runner.reason}")
    return _profiled(runner)


@contextmanager
def _profiled(runner: NativeRunner) -> Iterator[Mapping[str, float]]:
    with runner.plan.profile() as seconds:
        yield seconds
