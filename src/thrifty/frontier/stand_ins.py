"""Stand-ins for `evaluation.machine`, `evaluation.cost`, `evaluation.scoring` and `evaluation.tasks`, one small form of
each: `doors` is the only module that imports them.
"""

from __future__ import annotations

import dataclasses
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from thrifty.decoding.sampling import SamplingParameters
from thrifty.engine.request import Request
from thrifty.errors import RecipeError, nearest
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.recovery import Interval, ratio_interval
from thrifty.evaluation.roofline import gemm_rate, read_bandwidth, weight_bytes_per_token

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.models.model import Model


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes a second. rates: operations a second by number format. memory: bytes."""

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    memory: int


def this_machine(threads: int | None = None) -> Machine:
    """This machine, measured."""
    import platform

    import psutil

    bandwidth, _ = read_bandwidth(threads)
    rate, kind = gemm_rate()
    rates = {"int8" if kind == "native" else "bf16": rate * 1e9}
    return Machine(platform.node() and "this machine", bandwidth * 1e9, rates, psutil.virtual_memory().total)


def decode_seconds(model: Model, cache_bytes: int, batch: int, machine: Machine) -> float:
    """The roofline of one decode step."""
    return (weight_bytes_per_token(model) + cache_bytes * batch) / machine.bandwidth


@dataclass(frozen=True)
class Item:
    """One question."""

    identity: str
    prompt: tuple[int, ...]
    expected: str = ""


@dataclass(frozen=True)
class Record:
    """One answer. score: 0 to 1."""

    task: str
    item: str
    score: float
    output: str
    seconds: float


class Task(ABC):
    """A task; its fields are its options."""

    name: ClassVar[str]
    metric: ClassVar[str]

    @abstractmethod
    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        """`count` questions."""

    @abstractmethod
    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        """Ask one."""


@dataclass(frozen=True)
class Recall(Task):
    """A number in filler text, asked for at its end."""

    length: int = 256

    name: ClassVar[str] = "recall"
    metric: ClassVar[str] = "exact"

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        found = []
        for index in range(count):
            draw = random.Random(f"{seed} {index}")
            secret, filler = str(draw.randrange(1000, 9999)), "The grass is green. The sky is blue. "
            parts = [filler] * max(1, self.length // len(tokenizer.encode(filler)))
            parts.insert(draw.randrange(len(parts) + 1), f"The secret number is {secret}. ")
            tokens = tokenizer.encode("".join(parts) + "Remember: the secret number is")
            found.append(Item(f"{index}", tuple(tokens), secret))
        return found

    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        before = time.perf_counter()
        request = Request(
            prompt=item.prompt, sampling=SamplingParameters(max_tokens=6), cache=cache, share_prefix=False
        )
        text = engine.submit(request).result().text
        return Record(self.name, item.identity, float(item.expected in text), text, time.perf_counter() - before)


def names() -> list[str]:
    """The known tasks."""
    return ["recall"]


def load(name: str, **options: Any) -> Task:
    """A task by name. Raises RecipeError with the nearest known name."""
    if name not in names():
        raise RecipeError(f"no task '{name}'. {nearest(name, names())}")
    return dataclasses.replace(Recall(), **options)


def score(engine: Engine, task: Task, items: Sequence[Item], cache: Tables | None) -> Iterator[Record]:
    """Ask all items."""
    for item in items:
        yield task.run(engine, item, cache)


def recovery(records: Sequence[Record], baseline_records: Sequence[Record]) -> Interval | None:
    """Mean score over the baseline's, paired by item; None where the baseline scores nothing."""
    baseline = {record.item: record.score for record in baseline_records}
    paired = [(record.score, baseline[record.item]) for record in records if record.item in baseline]
    if not paired:
        return None
    scores, references = torch.tensor(paired).T
    return ratio_interval(scores, references)
