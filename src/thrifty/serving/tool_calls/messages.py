"""Messages with calls and results of tools, as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.serving.errors import RequestError


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as objects: OpenAI's API gives their text, templates write JSON of them.

    Raises RequestError that names the field.
    """
    return [_message(message, f"messages.{place}") for place, message in enumerate(messages)]


def _message(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    if "function_call" in message:
        raise RequestError(f"{place}.function_call is not supported; use tool_calls", param=f"{place}.function_call")
    if message.get("role") == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise RequestError(
            f"{place} has the role 'tool' and no tool_call_id; give the id of the call that it answers",
            param=f"{place}.tool_call_id",
        )
    calls = message.get("tool_calls")
    if calls is None:
        return {name: value for name, value in message.items() if name != "tool_calls"}
    if not isinstance(calls, list) or not calls:
        raise RequestError(f"{place}.tool_calls must be a list of at least 1 call", param=f"{place}.tool_calls")
    own = [_call(call, f"{place}.tool_calls.{index}") for index, call in enumerate(calls)]
    return {**message, "tool_calls": own}


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{place} is no call; give an id, type 'function' and a function", param=place)
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), place)}}


def _arguments(given: Any, place: str) -> Any:
    field = f"{place}.function.arguments"
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{field} is no JSON: {error}", param=field) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{field} must be the text of a JSON object", param=field)
    return arguments
