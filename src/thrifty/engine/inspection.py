"""What an engine tells of itself: the facts that hold while it lives, and what it holds now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.engine.admission.charges import ADAPTERS, GRAMMARS
from thrifty.engine.drafting.models import DRAFT
from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.errors import KernelError
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.engine.admission.intake import Intake
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.runner import Runner
    from thrifty.engine.scheduler import Scheduler


FIXED = ("weights", "workspace", ADAPTERS, GRAMMARS, DRAFT)
"""Categories of the ledger that no request alone holds."""


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
    #: Read from the disk tier and written to it since the engine was made.
    disk_read: int
    disk_written: int
    #: Of `current`: in prefixes that the tree keeps for later prompts.
    tree: int
    #: On the disk tier, of `disk`: pages of prompts that policies compressed, kept for later ones.
    conversations: int
    #: Conversations that go on from their own caches, and their bytes on the disk tier, of `disk`. Those in memory are
    #: the category "sessions".
    sessions: int
    sessions_disk: int
    #: Sequences that wait for their admission, that are computed, and that wait for memory to go on.
    waiting: int
    active: int
    parked: int

    def bytes_of(self, category: str) -> int:
        """Bytes that a category holds, 0 where there is none of it."""
        held = self.categories.get(category)
        return 0 if held is None else held.current


@dataclass(frozen=True)
class EnginePressure:
    """How short an engine is of memory and of time at one moment."""

    #: Share (0 to 1) of the bytes beside weights and workspace that no request under way holds or was promised: free,
    #: or held by what goes when others need it (prefixes, sessions, checkpoints). None: there is no budget.
    free: float | None
    #: Seconds that the request waits that came first among those that are not admitted; 0: none waits.
    waiting_seconds: float
    #: Sequences that wait for memory to go on.
    parked: int
    #: Whether the next of those that wait has no room beside the others.
    lacks_room: bool = False


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
    names = ("current", "peak", "steady", "arena", "disk", "disk_read", "disk_written", "tree", "conversations")
    named = {name: held[name] for name in names}
    kept = {"sessions": len(memory.sessions), "sessions_disk": memory.sessions.disk_bytes}
    return EngineUsage(categories=categories, **named, **kept, **scheduler.describe())


def pressure(memory: EngineMemory, scheduler: Scheduler) -> EnginePressure:
    """See `Engine.pressure`."""
    budget, free = memory.ledger.budget, None
    if budget is not None:
        room = budget - sum(memory.ledger.bytes_of(category) for category in FIXED)
        promised = memory.ledger.committed - memory.ledger.current
        free = max(0.0, 1 - (memory.cache.busy_bytes + promised) / max(1, room))
    waited = max((sequence.answer.waited_seconds for sequence in scheduler.waiting), default=0.0)
    lacks_room = scheduler.lacks_room and bool(scheduler.waiting or scheduler.parked)
    return EnginePressure(free, waited, len(scheduler.parked), lacks_room)


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
