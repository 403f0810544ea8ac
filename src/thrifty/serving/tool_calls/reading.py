"""One sample of an answer with tools, as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.engine.answer import Event
from thrifty.serving.tool_calls.call_parser import Piece
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat


class CallReader:
    """Events in; deltas, and at the end the message, out. control: ids of the format's markers that are control tokens:
    they come without text.
    """

    def __init__(self, form: ToolFormat, offer: Offer, control: Mapping[str, int]) -> None:
        self._form = form
        self._markers = {token: text for text, token in control.items()}
        self._parser = form.parser(offer)
        self._content = ""
        self._calls: list[dict[str, Any]] = []

    def push(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds, as deltas of a message."""
        pieces = self._parser.push(event.text)
        if event.token is not None and event.token in self._markers:
            pieces += self._parser.push(self._markers[event.token])
        if event.finish_reason is not None:
            pieces += self._parser.flush()
        return [self._delta(piece) for piece in pieces]

    def reason(self, reason: str | None) -> str | None:
        """What clients expect: "tool_calls" where an answer stops that calls, unless a stop string cut a call."""
        called = reason == "stop" and self._calls and not self._parser.unfinished
        return "tool_calls" if called else reason

    def message(self) -> dict[str, Any]:
        """The whole message."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content or None}
        if self._calls:
            return message | {"tool_calls": self._calls}
        return message | {"content": self._content}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.content:
            self._content += piece.content
            return {"content": piece.content}
        if piece.name is not None:
            call = {"id": self._form.identity(), "type": "function"}
            self._calls.append(call | {"function": {"name": piece.name, "arguments": ""}})
            function = {"name": piece.name, "arguments": ""}
            return {"tool_calls": [{"index": piece.call} | call | {"function": function}]}
        self._calls[piece.call]["function"]["arguments"] += piece.arguments
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.arguments}}]}
