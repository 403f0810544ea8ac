"""The tasks that quality is measured with: one file each, found by its name, imported when it is used.

A task's module is named after it (`recall_many.py` is `recall-many`, `ruler/vt.py` is `ruler-vt`) and holds one
subclass of `Task`, a frozen dataclass whose fields are its options. Nothing else lists it. A group is a file
`groups/NAME.toml` with a list `tasks`.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import pkgutil
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from thrifty import registry
from thrifty.errors import ThriftyError, nearest
from thrifty.evaluation.tasks.task import Task

BASE = "task"  # the module of the base class


class TaskError(ThriftyError):
    """A task is unknown, its option is, or a package that it needs is missing."""


def names() -> list[str]:
    """The names of all tasks, sorted. Imports none of them."""
    return sorted(_modules())


def _modules() -> dict[str, str]:
    """The tasks' modules by their names: `kl`, and `ruler.vt` of the folder ruler as `ruler-vt`."""
    modules = {name: module for name, module in registry.found(__path__).items() if name != BASE}
    for folder in pkgutil.iter_modules(__path__):
        if folder.ispkg:
            inside = registry.found([f"{path}/{folder.name}" for path in __path__])
            modules |= {f"{folder.name}-{name}": f"{folder.name}.{module}" for name, module in inside.items()}
    return modules


def groups() -> dict[str, list[str]]:
    """The groups and their tasks, as `parse` reads these."""
    files = (importlib.resources.files(__name__) / "groups").iterdir()
    by_name = {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}
    return {name: tomllib.loads(by_name[name].read_text(encoding="utf-8"))["tasks"] for name in sorted(by_name)}


def load(name: str, **options: Any) -> Task:
    """A task with its options set; text is read as the option's type.

    Raises TaskError for an unknown name or option, with the nearest known one, or for a value out of range.
    """
    if name not in names():
        raise TaskError(f"no task '{name}'. {nearest(name, [*names(), *groups()])}")
    cls = registry.only(f"{__name__}.{_modules()[name]}", lambda defined: issubclass(defined, Task), "task")
    task: Task = registry.construct(cls, f"task '{name}'", options, TaskError)
    return task


def parse(text: str, **defaults: Any) -> Task:
    """A task from `recall` or `recall:mode=aware:digits=3`.

    defaults: options for those tasks that have them, unless the text sets them. Raises TaskError.
    """
    name, options = _split(text)
    return load(name, **{**defaults, **options})


def parse_all(texts: Iterable[str], **defaults: Any) -> list[Task]:
    """The tasks of several texts, none twice. A group stands for its tasks: `longcontext:length=2048` sets the option
    in all that have it. Raises TaskError.
    """
    known = groups()
    chosen: list[Task] = []
    for text in texts:
        name, options = _split(text)
        members = _members(name, known[name], options) if name in known else [(name, options)]
        chosen += [load(member, **{**defaults, **own}) for member, own in members]
    return list(dict.fromkeys(chosen))


def _members(group: str, texts: Iterable[str], options: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The tasks of a group with their options. Raises TaskError for an option that none of them has."""
    written = [_split(text) for text in texts]
    known = {name: {field.name for field in dataclasses.fields(load(name))} for name, _ in written}
    every = set().union(*known.values())
    for option in options:
        if option not in every:
            raise TaskError(f"no task of the group '{group}' has an option '{option}'. {nearest(option, every)}")
    return [
        (name, own | {option: value for option, value in options.items() if option in known[name]})
        for name, own in written
    ]


def _split(text: str) -> tuple[str, dict[str, str]]:
    name, *parts = text.strip().split(":")
    options: dict[str, str] = {}
    for part in parts:
        key, separator, value = part.partition("=")
        if not separator or not key:
            raise TaskError(f"'{part}' of task '{text.strip()}' is not OPTION=VALUE. Write e.g. recall:mode=aware")
        options[key] = value
    return name, options


def labels(chosen: Sequence[Task]) -> list[str]:
    """What tells tasks of one run apart: their labels, with the length where several have the same."""
    own = [task.label for task in chosen]
    return [
        f"{label}:length={task.length}" if own.count(label) > 1 else label
        for label, task in zip(own, chosen, strict=True)
    ]
