"""The input of a response as a conversation: messages, calls of functions, and what these gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.serving.bodies.chat_messages import message_of, shown, text_of
from thrifty.serving.bodies.message_calls import arguments_of
from thrifty.serving.errors import RequestError, unknown_field

PARTS = ("input_text", "output_text", "text")
KINDS = ("message", "function_call", "function_call_output")
OF_ANSWERS = ("type", "id", "status")
"""What items of an earlier answer have beside what is asked for."""


def conversation(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: calls that follow each other, or a message of the assistant, are one
    message. Raises RequestError that names the item's field.
    """
    if not items:
        raise RequestError("input is empty; it needs at least 1 message", param="input")
    messages: list[dict[str, Any]] = []
    called: set[str] = set()
    for index, item in enumerate(items):
        place = f"input.{index}"
        kind = item.get("type", "message")
        if kind == "function_call":
            call = _call(item, place)
            called.add(call["id"])
            _add_call(messages, call)
        elif kind == "function_call_output":
            messages.append(_output(item, place, called))
        elif kind == "message":
            messages.append(_message(item, place))
        else:
            raise RequestError(
                f"'{place}.type' is {shown(kind)}; this server takes {', '.join(KINDS)}", param=f"{place}.type"
            )
    return messages


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    given = _given(item)
    given["content"] = text_of(given.get("content"), f"{place}.content", PARTS)
    return message_of(given, place)


def _call(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    given = _given(item)
    _check_fields(given, ("call_id", "name", "arguments"), place)
    arguments = arguments_of(given["arguments"], f"{place}.arguments")
    return {"id": given["call_id"], "type": "function", "function": {"name": given["name"], "arguments": arguments}}


def _add_call(messages: list[dict[str, Any]], call: dict[str, Any]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _output(item: Mapping[str, Any], place: str, called: set[str]) -> dict[str, Any]:
    given = _given(item)
    output = given.pop("output", None)
    _check_fields(given, ("call_id",), place)
    if given["call_id"] not in called:
        raise RequestError(
            f"'{place}.call_id' is {shown(given['call_id'])}; no function_call before it has that call_id",
            param=f"{place}.call_id",
        )
    content = text_of(output, f"{place}.output", PARTS)
    return {"role": "tool", "tool_call_id": given["call_id"], "content": content}


def _given(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in OF_ANSWERS and value is not None}


def _check_fields(given: Mapping[str, Any], wanted: Sequence[str], place: str) -> None:
    """Raise RequestError unless these fields are texts, and there are no others."""
    for name in given:
        if name not in wanted:
            raise RequestError(unknown_field(f"{place}.{name}", name, wanted), param=f"{place}.{name}")
    for name in wanted:
        if not isinstance(given.get(name), str):
            raise RequestError(
                f"'{place}.{name}' is {shown(given.get(name))}; it must be a text", param=f"{place}.{name}"
            )
