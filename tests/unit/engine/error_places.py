"""Every call of some packages, counted; one of them raises."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

PACKAGES = ("thrifty.storage", "thrifty.cache", "thrifty.decoding")
MODULES = (
    "thrifty.engine.prefill.prefill", "thrifty.engine.prefill.rehearsal", "thrifty.engine.running",
    "thrifty.engine.admission.memory",
    "thrifty.engine.admission.request_bounds", "thrifty.engine.decode",
    "thrifty.engine.runner", "thrifty.engine.plan.native_runner",
)  # fmt: skip
"""What a step calls. The step itself (`step`, `sequences`, `publishing`) is what must hold."""
CALLED_BY_NAME = (("thrifty.engine.step", "decode"), ("thrifty.engine.step", "first_choices"))
"""Functions that a module took from another one."""


class Places:
    """Wraps functions and methods so that, while it is armed, their calls are counted and one of them raises.

    calls: how many there were. place: where the error was raised, None where it was not.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.place: str | None = None
        self.error: BaseException | None = None
        self._kind: type[BaseException] = ValueError
        self._at = 0
        self._after = False
        self._armed = False
        self.names: frozenset[str] | None = None

    @contextmanager
    def armed(self, kind: type[BaseException], at: int, *, after: bool = False) -> Iterator[None]:
        """The `at`-th call from now on (0: none) raises, before it does anything or after it did all. Where `names` are
        set, calls of other functions are not counted.
        """
        self.calls, self.place, self.error = 0, None, None
        self._kind, self._at, self._after, self._armed = kind, at, after, True
        try:
            yield
        finally:
            self._armed = False

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a place."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if not self._armed or (self.names is not None and function.__name__ not in self.names):
                return function(*arguments, **options)
            self.calls += 1
            if self.calls != self._at:
                return function(*arguments, **options)
            if self._after:
                self._at = 0
                function(*arguments, **options)
            self.place = function.__qualname__
            self.error = self._kind(f"raised at {self.place}")
            raise self.error

        return call


def wrap_all(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every method and function of the packages a place."""
    for module in _modules():
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for method, function in list(vars(value).items()):
                    if inspect.isfunction(function) and not method.startswith("__"):
                        monkeypatch.setattr(value, method, places.wrapped(function))
            elif inspect.isfunction(value) and value.__module__.startswith("thrifty."):
                monkeypatch.setattr(module, name, places.wrapped(value))
    for path, name in CALLED_BY_NAME:
        module = importlib.import_module(path)
        monkeypatch.setattr(module, name, places.wrapped(getattr(module, name)))


def _modules() -> Iterator[ModuleType]:
    for package in map(importlib.import_module, PACKAGES):
        yield package
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield importlib.import_module(found.name)
    yield from map(importlib.import_module, MODULES)
