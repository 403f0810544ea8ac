"""Processes that train one model together: each takes its share of a step's examples, gradients are averaged."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class Team:
    """A process's place among `size`. Alone, nothing is exchanged."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def share(self, count: int) -> int:
        """How many of `count` examples are this process's; every process takes as many, at least one."""
        return max(1, count // self.size)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes its mean over the team."""
        if self.size == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([one.flatten() for one in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, (flat / self.size).split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, *values: float) -> list[float]:
        """Each number summed over the team."""
        if self.size == 1:
            return list(values)
        summed: Tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(summed)
        return [float(one) for one in summed]


def together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(team, *arguments)` in `size` processes at once, this one the first of them.

    A process that dies takes the others with it: their next exchange raises RuntimeError.
    """
    if size == 1:
        work(Team(), *arguments)
        return
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        others = [
            context.Process(target=_member, args=(rank, size, meeting, work, arguments)) for rank in range(1, size)
        ]
        for one in others:
            one.start()
        _member(0, size, meeting, work, arguments)
        for one in others:
            one.join()


def _member(rank: int, size: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    try:
        work(Team(rank, size), *arguments)
    finally:
        distributed.destroy_process_group()
