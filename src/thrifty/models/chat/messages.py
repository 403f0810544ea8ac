"""Messages and arguments as callers give them, made into what a chat template expects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.errors import TemplateError
from thrifty.models.chat.message_text import marked
from thrifty.models.chat.sandbox import ABSENT

_WORD = re.compile(r"[\w -]+")  # cannot spell a control token by itself
_RESERVED = frozenset(("messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"))


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain dictionaries whose texts are marked as a message's. Content that is a list of text parts
    becomes one text, a part a line; keys other than "role" and "content" pass through.

    A role of plain words is not marked: templates build control tokens with it, and it is the application's choice.
    Raises TemplateError that names the message and the field.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TemplateError(f"Messages must be a list of {{'role', 'content'}}, not {type(messages).__name__}.")
    if not messages:
        raise TemplateError("The list of messages is empty; it needs at least one.")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise TemplateError(f"Message {index} must be an object with 'role' and 'content', not {kind}.")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise TemplateError(f"Message {index} has no 'role' (such as 'user', 'assistant' or 'system').")
        plain = str(role) if _WORD.fullmatch(role) else marked(role)
        own = {"role": plain, "content": _content(message, f"Message {index} ('{role}')")}
        # In the order that they came in: templates write whole messages as JSON.
        fields = {key if key in own else marked(key): own.get(key) or marked(value) for key, value in message.items()}
        checked.append({**fields, **own})
    return checked


def check_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A template's arguments: JSON-like data by name. Raises TemplateError that names the argument."""
    for name, value in arguments.items():
        if name in _RESERVED:
            raise TemplateError(f"'{name}' is no argument of a chat template: it follows from the request.")
        _check_data(value, name)
        if name in ("tools", "documents") and not _is_list_of_objects(value):
            raise TemplateError(f"'{name}' must be a list of JSON objects, not {_kind(value)}.")
    return dict(arguments)


def _content(message: Mapping[str, Any], place: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        text: str = marked(content)
        return text
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return ABSENT
    if isinstance(content, (list, tuple)) and content:
        joined: str = marked("\n".join(_part(part, f"{place}, part {index}") for index, part in enumerate(content)))
        return joined
    raise TemplateError(
        f"{place} has no 'content' text: it is {_kind(content)}; give a string, or a list of "
        "{'type': 'text', 'text': ...}."
    )


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping):
        raise TemplateError(f"{place} is {_kind(part)}; a part is {{'type': 'text', 'text': ...}}.")
    kind = part.get("type")
    if kind != "text":
        raise TemplateError(f"{place} is of type {kind!r}; only parts of type 'text' can be served.")
    text = part.get("text")
    if not isinstance(text, str):
        raise TemplateError(f"{place} has no 'text': it is {_kind(text)}; give a string.")
    return text


def _check_data(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TemplateError(f"'{name}' has the key {key!r:.40}; keys must be strings, as in JSON.")
            _check_data(item, name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_data(item, name)
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise TemplateError(f"'{name}' holds {_kind(value)}; a chat template takes JSON data only.")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}: {value!r:.60}"
