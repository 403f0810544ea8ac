"""Data that installed packages bring: read where they lie, nothing of a package is imported and nothing is copied."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from thrifty.errors import PromptError
from thrifty.evaluation.halves import Half, half_of

EXTRA = "'thrifty-engine[tasks]'"


def folder(module: str, task: str, install: str) -> Path:
    """The folder of an installed package. install: what pip is told to install it.

    Raises TaskError where it is not installed.
    """
    from thrifty.evaluation.tasks import TaskError

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise TaskError(
            f"the task '{task}' reads its items from {module}, which is not installed: pip install {install}"
        )
    return Path(spec.origin).parent


def first_file(places: Sequence[Path], task: str) -> Path:
    """The first of several places that is a file. Raises TaskError where none is."""
    from thrifty.evaluation.tasks import TaskError

    for place in places:
        if place.is_file():
            return place
    raise TaskError(
        f"the package of the task '{task}' has no {places[0]}; install a version of it that brings its data"
    )


def of_half(keys: Sequence[str], half: Half) -> list[str]:
    """The keys of items that belong to a half, in their order."""
    return [key for key in keys if half_of(key) == half]


def enough(there: int, count: int, task: str, half: Half) -> None:
    """Raise PromptError where a half has fewer items than were asked for."""
    if count > there:
        raise PromptError(
            f"the half '{half}' of '{task}' has {there} items, and {count} were asked for; use at most --items {there}"
        )
