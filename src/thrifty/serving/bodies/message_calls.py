"""Calls in a conversation, as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from thrifty.serving.errors import RequestError, unknown_field

CALL_FIELDS = frozenset(("id", "type", "function", "index"))
FUNCTION_FIELDS = frozenset(("name", "arguments"))


def calls_of(calls: Any, place: str) -> list[dict[str, Any]]:
    """The calls of an assistant's message with their arguments as objects: OpenAI's API gives their text, and templates
    write JSON of them. place: of the field. Raises RequestError that names what is wrong.
    """
    if not isinstance(calls, list) or not calls:
        raise RequestError(f"'{place}' must be a list of at least 1 call", param=place)
    return [_call(call, f"{place}.{index}") for index, call in enumerate(calls)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"'{place}' is no call; give an id, the type 'function' and a function", param=place)
    _check_fields(call, CALL_FIELDS, place)
    _check_fields(function, FUNCTION_FIELDS, f"{place}.function")
    if call.get("type", "function") != "function" or not isinstance(call.get("id"), str):
        raise RequestError(f"'{place}' needs an id, and the type 'function'", param=place)
    arguments = arguments_of(function.get("arguments"), f"{place}.function.arguments")
    shown = {"name": function["name"], "arguments": arguments}
    return {"id": call["id"], "type": "function", "function": shown}


def _check_fields(given: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise RequestError(unknown_field(f"{place}.{name}", name, known), param=f"{place}.{name}")


def arguments_of(given: Any, place: str) -> Mapping[str, Any]:
    """The arguments of a call, from their JSON. Raises RequestError unless it is an object."""
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise RequestError(f"'{place}' is no JSON: {error}", param=place) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"'{place}' must be the text of a JSON object", param=place)
    return arguments
