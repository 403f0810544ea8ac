"""What the front knows of the streams that it passes on: events that say nothing of an answer yet, and error events."""

from __future__ import annotations

import json
from typing import Any

from thrifty.serving.answers import data_line, named_event
from thrifty.serving.anthropic.errors import PATHS as ANTHROPIC
from thrifty.serving.anthropic.errors import error_body
from thrifty.serving.errors import described

OPENING = frozenset(("response.created", "response.in_progress", "message_start"))
"""Types of events that come before the model has said anything."""

RESPONSES = "/v1/responses"


def is_keep_alive(event: bytes) -> bool:
    """Whether an event only keeps a silent stream open."""
    return event.startswith((b":", b"event: ping\n"))


def is_opening(event: bytes) -> bool:
    """Whether an event says nothing of the answer: an empty message, a role. What cannot be read says something."""
    try:
        told = json.loads(event.partition(b"data: ")[2])
    except ValueError:
        return False
    if not isinstance(told, dict):
        return False
    kind = told.get("type")
    if kind == "response.output_item.added":
        return bool(told["item"].get("type") == "message" and not told["item"].get("content"))
    if kind == "response.content_part.added":
        return not told["part"].get("text")
    if kind == "content_block_start":
        return bool(told["content_block"].get("type") == "text" and not told["content_block"].get("text"))
    if kind is not None:
        return kind in OPENING
    choices = told.get("choices")
    return isinstance(choices, list) and bool(choices) and all(_is_role(choice) for choice in choices)


def _is_role(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice is the role alone."""
    return choice.get("delta") == {"role": "assistant", "content": ""} and choice.get("finish_reason") is None


def error_event(path: str, error: Exception, last: bytes) -> bytes:
    """The event that ends a stream of this endpoint. last: the event that was sent before it, empty where none was."""
    status, body = described(error)
    if path.startswith(ANTHROPIC):
        return named_event(error_body(status, body))
    if path == RESPONSES:
        told = body["error"]
        fields = {"code": told["code"], "message": told["message"], "param": told["param"]}
        return named_event({"type": "error", "sequence_number": _number(last) + 1, **fields})
    return data_line(body)


def _number(event: bytes) -> int:
    """The number of a response's event; -1 where it has none."""
    try:
        return int(json.loads(event.partition(b"data: ")[2])["sequence_number"])
    except (ValueError, KeyError, TypeError):
        return -1
