"""Messages of Anthropic's API as chat templates read them: tools that were used, and what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.serving.bodies.chat_messages import message_of, shown, text_of, text_of_part
from thrifty.serving.errors import RequestError, unknown_field

FIELDS = {
    "tool_use": frozenset(("type", "id", "name", "input")),
    "tool_result": frozenset(("type", "tool_use_id", "content", "is_error")),
}
"""Blocks that are no texts, and what each may have."""

ROLES = {"tool_use": "assistant", "tool_result": "user"}
"""Whose they are."""

FAILED = "Error: "
"""Stands in front of the result of a tool that failed: chat templates have no other place for it."""


def conversation(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same messages; a result of a tool is a message of its own. Raises RequestError that names the field."""
    for index, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant"):
            place = f"messages.{index}.role"
            raise RequestError(f"'{place}' is {shown(message.get('role'))}; use user or assistant", param=place)
    if messages[-1]["role"] != "user":
        place = f"messages.{len(messages) - 1}.role"
        raise RequestError(f"'{place}': the last message must be the user's", param=place)
    told: list[dict[str, Any]] = []
    used: set[str] = set()
    for index, message in enumerate(messages):
        told += _message(message, f"messages.{index}", used)
    return told


def _message(message: Mapping[str, Any], place: str, used: set[str]) -> list[dict[str, Any]]:
    """One message, or those that stand for it. used: ids of the tools used so far; those of this message are added."""
    blocks = message.get("content")
    if not isinstance(blocks, list) or not any(_kind(block) in FIELDS for block in blocks):
        return [message_of(message, place)]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        own = f"{place}.content.{index}"
        if _kind(block) not in FIELDS:
            texts.append(text_of_part(block, own))
            continue
        _check_block(block, message["role"], own)
        if block["type"] == "tool_use":
            calls.append(_use(block, own))
            used.add(block["id"])
        elif texts:
            raise RequestError(f"'{own}' comes behind a text; give the results of tools first", param=own)
        else:
            results.append(_result(block, own, used))
    text = "".join(texts)
    if calls:
        return [{"role": "assistant", "content": text, "tool_calls": calls}]
    return [*results, {"role": "user", "content": text}] if texts else results


def _kind(block: Any) -> Any:
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) else None


def _check_block(block: Mapping[str, Any], role: str, place: str) -> None:
    """Raise RequestError for a field that is not known, and for a block in another's message."""
    kind = block["type"]
    if role != ROLES[kind]:
        raise RequestError(f"'{place}.type' is {kind}; it belongs to the {ROLES[kind]}", param=f"{place}.type")
    for name, value in block.items():
        if name not in FIELDS[kind] and value is not None:
            raise RequestError(unknown_field(f"{place}.{name}", name, FIELDS[kind]), param=f"{place}.{name}")


def _use(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    for name in ("id", "name"):
        if not isinstance(block.get(name), str):
            raise _wrong(block, name, "a text", place)
    if not isinstance(block.get("input"), Mapping):
        raise _wrong(block, "input", "an object", place)
    function = {"name": block["name"], "arguments": block["input"]}
    return {"id": block["id"], "type": "function", "function": function}


def _result(block: Mapping[str, Any], place: str, used: set[str]) -> dict[str, Any]:
    identity = block.get("tool_use_id")
    if not isinstance(identity, str) or identity not in used:
        raise RequestError(
            f"'{place}.tool_use_id' is {shown(identity)}; no tool_use before it has that id",
            param=f"{place}.tool_use_id",
        )
    if block.get("is_error") not in (None, False, True):
        raise _wrong(block, "is_error", "true or false", place)
    content = text_of(block.get("content", ""), f"{place}.content")
    return {"role": "tool", "tool_call_id": identity, "content": FAILED + content if block.get("is_error") else content}


def _wrong(block: Mapping[str, Any], name: str, wanted: str, place: str) -> RequestError:
    return RequestError(f"'{place}.{name}' is {shown(block.get(name))}; it must be {wanted}", param=f"{place}.{name}")
