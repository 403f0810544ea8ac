"""Messages of a conversation, as clients send them, made what a chat template reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.serving.bodies.message_calls import calls_of
from thrifty.serving.errors import RequestError, unknown_field

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles that are taken, and what templates call them: no template knows a developer."""

FIELDS = frozenset(("role", "content", "name"))
TOOL_FIELDS = {"assistant": "tool_calls", "tool": "tool_call_id"}
"""What a role may have beside these."""


def checked(messages: Sequence[Mapping[str, Any]], place: str = "messages") -> list[dict[str, Any]]:
    """The same with plain texts as contents; parts of a content are joined. Fields that are null are left out. The
    arguments of calls become objects.

    Raises RequestError that names what a template would not see, such as "messages.0.content.1.type".
    """
    return [message_of(message, f"{place}.{index}") for index, message in enumerate(messages)]


def message_of(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One message, as `checked` has them. place: where it stands."""
    given = {name: value for name, value in message.items() if value is not None}
    role = given.get("role")
    for name in given:
        if name not in FIELDS and name != TOOL_FIELDS.get(str(role)):
            known = {*FIELDS, *filter(None, [TOOL_FIELDS.get(str(role))])}
            raise RequestError(unknown_field(f"{place}.{name}", name, known), param=f"{place}.{name}")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"'{place}.role' is {shown(role)}; use one of {', '.join(ROLES)}", param=f"{place}.role")
    if not isinstance(given.get("name", ""), str):
        raise RequestError(f"'{place}.name' is no text", param=f"{place}.name")
    if role == "tool" and not isinstance(given.get("tool_call_id"), str):
        raise RequestError(
            f"'{place}.tool_call_id' is {shown(given.get('tool_call_id'))}; give the id of the call that was answered",
            param=f"{place}.tool_call_id",
        )
    if "tool_calls" in given:
        given["tool_calls"] = calls_of(given["tool_calls"], f"{place}.tool_calls")
        if "content" not in given:
            return given
    return given | {"role": ROLES[role], "content": text_of(given.get("content"), f"{place}.content")}


def text_of(content: Any, place: str, kinds: Sequence[str] = ("text",)) -> str:
    """The text of a content: it, or its parts, joined. kinds: types of part that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"'{place}' is {shown(content)}; use a text, or a list of text parts", param=place)
    return "".join(text_of_part(part, f"{place}.{index}", kinds) for index, part in enumerate(content))


def text_of_part(part: Any, place: str, kinds: Sequence[str] = ("text",)) -> str:
    """The text of one part of a content."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise RequestError(f"'{place}' is no part; use {{'type': '{kinds[0]}', 'text': …}}", param=place)
    if part["type"] not in kinds:
        raise RequestError(
            f"'{place}.type' is {shown(part['type'])}; this server takes {' and '.join(kinds)} alone",
            param=f"{place}.type",
        )
    for name, value in part.items():
        if name not in ("type", "text") and value:
            raise RequestError(unknown_field(f"{place}.{name}", name, ("type", "text")), param=f"{place}.{name}")
    if not isinstance(part.get("text"), str):
        raise RequestError(f"'{place}.text' is {shown(part.get('text'))}; it must be a text", param=f"{place}.text")
    return str(part["text"])


def shown(value: Any) -> str:
    """A value in a message, cut."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
