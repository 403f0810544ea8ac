"""Which fields a body may have at a place, to help after a wrong name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from starlette.requests import Request


def body_of(request: Request) -> type[BaseModel] | None:
    """What the endpoint of a request takes as its body; None where it takes none."""
    endpoint = request.scope.get("endpoint")
    kind = None if endpoint is None else get_type_hints(endpoint).get("body")
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def fields_at(body: type[BaseModel], place: Sequence[str | int]) -> set[str]:
    """Names of the fields that the object at a place of a body may have, as clients write them.

    place: of the object, as pydantic tells places: fields, numbers of lists, and names of classes among several.
    """
    kinds = {body}
    for part in place:
        named = {kind for kind in kinds if kind.__name__ == part}
        kinds = named or set(_inside(kinds, part)) or kinds
    return {_told(name, field) for kind in kinds for name, field in kind.model_fields.items()}


def _inside(kinds: set[type[BaseModel]], part: str | int) -> Iterator[type[BaseModel]]:
    """The objects that a field of any of these may hold."""
    for kind in kinds:
        for name, field in kind.model_fields.items():
            if _told(name, field) == part:
                yield from _models_of(field.annotation)


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of objects in a field's type, whatever lists and choices they stand in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_of(part)


def _told(name: str, field: Any) -> str:
    return str(field.alias or name)
