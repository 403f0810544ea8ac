"""The tasks that quality is measured with: one file each, found by its name, imported when it is used.

A task's module is named after it (`recall_many.py` is `recall-many`) and holds one subclass of `Task`, a frozen
dataclass whose fields are its options. Nothing else lists it.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pydantic

from thrifty.errors import ThriftyError, nearest
from thrifty.evaluation.tasks.task import Task

BASE = "task"  # the module of the base class


class TaskError(ThriftyError):
    """A task is unknown, its option is, or a package that it needs is missing."""


def names() -> list[str]:
    """The names of all tasks, sorted. Imports none of them."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name.replace("_", "-") for name in modules if name != BASE and not name.startswith("_"))


def load(name: str, **options: Any) -> Task:
    """A task with its options set; text is read as the option's type.

    Raises TaskError for an unknown name or option, with the nearest known one, or for a value out of range.
    """
    if name not in names():
        raise TaskError(f"no task '{name}'. {nearest(name, names())}")
    cls = _class_of(name)
    known = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise TaskError(f"task '{name}' has no option '{option}'. {nearest(option, known)}")
    try:
        task: Task = pydantic.TypeAdapter(cls).validate_python(options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        message = f"task '{name}', option '{where}': {first['msg']} (found {first['input']!r})"
        raise TaskError(message) from error
    return task


def parse(text: str, **defaults: Any) -> Task:
    """A task from `recall` or `recall:mode=aware:digits=3`.

    defaults: options for those tasks that have them, unless the text sets them. Raises TaskError.
    """
    name, *parts = text.strip().split(":")
    options: dict[str, Any] = {}
    for part in parts:
        key, separator, value = part.partition("=")
        if not separator or not key:
            raise TaskError(f"'{part}' of task '{text.strip()}' is not OPTION=VALUE. Write e.g. recall:mode=aware")
        options[key] = value
    return load(name, **{**defaults, **options})


def _class_of(name: str) -> type[Task]:
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TaskError(f"{module.__name__} must hold one task; it holds {len(found)}")
    return found[0]
