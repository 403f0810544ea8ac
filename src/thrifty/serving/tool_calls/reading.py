"""One sample of an answer with tools, as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.engine.answer import Event
from thrifty.serving.tool_calls.call_parser import Piece
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat


class CallReader:
    """Events in; pieces out, or deltas and at the end the message as OpenAI's chat has them. control: ids of the
    format's markers that are control tokens: they come without text.
    """

    def __init__(self, form: ToolFormat, offer: Offer, control: Mapping[str, int]) -> None:
        self._form = form
        self._markers = {token: text for text, token in control.items()}
        self._parser = form.parser(offer)
        self._content = ""
        self._calls: list[dict[str, Any]] = []

    def pieces(self, event: Event) -> list[Piece]:
        """What an event adds."""
        pieces = self._parser.push(event.text)
        if event.token is not None and event.token in self._markers:
            pieces += self._parser.push(self._markers[event.token])
        if event.finish_reason is not None:
            pieces += self._parser.flush()
        for piece in pieces:
            self._keep(piece)
        return pieces

    def push(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds, as deltas of a message."""
        return [self._delta(piece) for piece in self.pieces(event)]

    def identity(self, call: int) -> str:
        """The id of a call that has begun."""
        return str(self._calls[call]["id"])

    @property
    def unfinished(self) -> bool:
        """Whether the last call's arguments are not whole."""
        return self._parser.unfinished

    def reason(self, reason: str | None) -> str | None:
        """What clients expect: "tool_calls" where an answer stops that calls, unless a stop string cut a call."""
        called = reason == "stop" and self._calls and not self.unfinished
        return "tool_calls" if called else reason

    def message(self) -> dict[str, Any]:
        """The whole message."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content or None}
        if self._calls:
            return message | {"tool_calls": self._calls}
        return message | {"content": self._content}

    def _keep(self, piece: Piece) -> None:
        self._content += piece.content
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            self._calls.append({"id": self._form.identity(), "type": "function", "function": function})
        if piece.call >= 0:
            self._calls[piece.call]["function"]["arguments"] += piece.arguments

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.content:
            return {"content": piece.content}
        if piece.name is not None:
            call = {"index": piece.call, "id": self.identity(piece.call), "type": "function"}
            return {"tool_calls": [call | {"function": {"name": piece.name, "arguments": ""}}]}
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.arguments}}]}
