"""The registry of techniques: one file each, found by its name, imported when it is used.

A technique lives in its stage's package in a module named after it (`h2o.py`, `ada_kv.py`) and registers its class
with `@technique(stage=..., card=...)`. The module's existence is its registration: no second list is kept anywhere.
Packages outside Thrifty add techniques through the entry-point group `thrifty.techniques`, with names such as
`cache.my-method` that point to the class.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from thrifty.card import Card
from thrifty.errors import RecipeError, ThriftyError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

STAGES: Mapping[str, str] = {
    "weights": "thrifty.weights.techniques",
    "prompt": "thrifty.engine.prompt.programs",
    "cache": "thrifty.cache.policies",
    "decoding": "thrifty.decoding.strategies",
}
ENTRY_POINT_GROUP = "thrifty.techniques"

T = TypeVar("T", bound=type)


def technique(*, stage: str, card: Card) -> Callable[[T], T]:
    """Mark a frozen dataclass as the technique of its module. Its fields are the options that a recipe may set."""

    def mark(cls: T) -> T:
        if stage not in STAGES:
            raise ValueError(f"{cls.__qualname__}: unknown stage '{stage}'. {nearest(stage, STAGES)}")
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__qualname__} must be a dataclass: its fields are the technique's options")
        cls.stage = stage  # type: ignore[attr-defined]
        cls.card = card  # type: ignore[attr-defined]
        cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")  # type: ignore[attr-defined]
        return cls

    return mark


def names(stage: str) -> list[str]:
    """The names of a stage's techniques, sorted. Imports none of them.

    Raises RecipeError for an unknown stage, or where two techniques claim one name.
    """
    built_in = _built_in(stage)
    external = _external(stage)
    for name in external:
        if name in built_in:
            raise RecipeError(
                f"technique '{name}' of stage '{stage}' is registered twice: by {built_in[name]} and by "
                f"{external[name].value}. Rename or uninstall one of them."
            )
    return sorted([*built_in, *external])


def load(stage: str, name: str) -> type:
    """The class of one technique; imports only its module.

    Raises RecipeError with the nearest known name where there is none.
    """
    if name not in names(stage):
        raise RecipeError(f"no technique '{name}' for stage '{stage}'. {nearest(name, names(stage))}")
    external = _external(stage)
    if name in external:
        return _checked(external[name].load(), stage, name, external[name].value)
    module = _built_in(stage)[name]
    marked = only(module, lambda cls: "card" in vars(cls), "technique")
    return _checked(marked, stage, name, module)


def build(stage: str, table: Mapping[str, Any]) -> Any:
    """An instance from one table of a recipe, such as `{"technique": "kivi", "bits": 2}`.

    Raises RecipeError naming the unknown technique, unknown option (with the nearest known one) or bad value.
    """
    options = dict(table)
    name = options.pop("technique", None)
    if not isinstance(name, str):
        raise RecipeError(f"a table of stage '{stage}' has no technique name: {dict(table)!r}. Add technique = \"...\"")
    return construct(load(stage, name), f"technique '{name}'", options)


def construct(cls: type, what: str, options: Mapping[str, Any], error: type[ThriftyError] = RecipeError) -> Any:
    """An instance of a dataclass, text read as the option's type. what: such as "technique 'kivi'", for the errors.

    Raises `error` naming the unknown option (with the nearest known one) or the bad value.
    """
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise error(f"{what} has no option '{option}'. {nearest(option, known)}")
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(options))
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        raise error(f"{what}, option '{where}': {first['msg']} (found {first['input']!r})") from problem


def describe(stage: str, name: str) -> dict[str, Any]:
    """One technique as JSON-ready values: name, stage, paper, claim, the rest of its card, its options with their
    defaults (None: not set), those that must be set, and what its class says of them.
    """
    cls: Any = load(stage, name)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    defaults = {field.name: _default(field) for field in fields}
    required = [option for option, default in defaults.items() if default is dataclasses.MISSING]
    return (
        {"name": name, "stage": stage}
        | cls.card.as_dict()
        | {
            "options": {option: None if option in required else default for option, default in defaults.items()},
            "required": required,
            "about_options": inspect.getdoc(cls) or "",
        }
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of an option, MISSING where it has none."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def found(path: Iterable[str]) -> dict[str, str]:
    """The modules of a package by the names that they give, as in {"ada-kv": "ada_kv"}; packages and those that begin
    with an underscore left out. Imports none. path: the package's `__path__`.
    """
    modules = (module.name for module in pkgutil.iter_modules(path) if not module.ispkg)
    return {name.replace("_", "-"): name for name in modules if not name.startswith("_")}


def only(module: str, accepts: Callable[[type], bool], what: str) -> type:
    """The one class that a module defines and `accepts` takes. what: such as "technique", for the error.

    Raises RecipeError where it defines none or several.
    """
    imported = importlib.import_module(module)
    own = [member for member in vars(imported).values() if isinstance(member, type) and member.__module__ == module]
    classes = [member for member in own if accepts(member)]
    if len(classes) != 1:
        raise RecipeError(f"{module} must define one {what}; it defines {len(classes)}")
    return classes[0]


def _built_in(stage: str) -> dict[str, str]:
    if stage not in STAGES:
        raise RecipeError(f"no stage '{stage}'. {nearest(stage, STAGES)}")
    package = STAGES[stage]
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return {}
    locations = spec.submodule_search_locations if spec else None
    return {name: f"{package}.{module}" for name, module in found(locations or []).items()}


def _external(stage: str) -> dict[str, EntryPoint]:
    import importlib.metadata  # takes as long as half the help page

    points: dict[str, EntryPoint] = {}
    for point in _entry_points(importlib.metadata.entry_points, tuple(sys.path)):
        point_stage, _, name = point.name.partition(".")
        if point_stage != stage:
            continue
        if name in points:
            raise RecipeError(
                f"technique '{name}' of stage '{stage}' is registered twice: by {points[name].value} and by "
                f"{point.value}. Uninstall one of them."
            )
        points[name] = point
    return points


@functools.cache
def _entry_points(read: Callable[..., Iterable[EntryPoint]], path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages register, read once a search path: it takes milliseconds, and recipes are built often."""
    return tuple(read(group=ENTRY_POINT_GROUP))


def _checked(cls: Any, stage: str, name: str, where: str) -> type:
    if getattr(cls, "stage", None) != stage:
        raise RecipeError(f"{where} registers stage '{getattr(cls, 'stage', None)}', expected '{stage}' for '{name}'")
    return cls
