"""One message in the shape that Anthropic's clients know, whole or in events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.models.tokens.tokenizer import Tokenizer
from thrifty.serving.anthropic.body import MessageBody
from thrifty.serving.tool_calls.blocks import Addition, Block, Blocks


class MessageAnswer:
    """A message over a request of the engine. blocks: its content."""

    def __init__(self, body: MessageBody, handle: AsyncHandle, blocks: Blocks, tokenizer: Tokenizer) -> None:
        self._body, self._handle, self._blocks, self._tokenizer = body, handle, blocks, tokenizer

    def whole(self) -> dict[str, Any]:
        """The message when it is over."""
        self._blocks.end(self._handle.samples[0])
        reason, stop = self._ending()
        return self._message([_shown(block) for block in self._blocks.all], reason, stop)

    def first(self) -> list[dict[str, Any]]:
        """The message, empty."""
        return [{"type": "message_start", "message": self._message([], None, None)}]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds."""
        return self._of(self._blocks.push(event))

    def last(self) -> list[dict[str, Any]]:
        """The end of the last block, and why the message ended."""
        events = self._of(self._blocks.end(self._handle.samples[0]))
        reason, stop = self._ending()
        return [
            *events,
            {"type": "content_block_stop", "index": len(self._blocks.all) - 1},
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": stop},
                "usage": self._usage(),
            },
            {"type": "message_stop"},
        ]

    def _of(self, additions: list[Addition]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for addition in additions:
            block = self._blocks.all[addition.place]
            if addition.opened:
                if addition.place:
                    events.append({"type": "content_block_stop", "index": addition.place - 1})
                begun = _shown(Block("", block.name, block.identity))
                events.append({"type": "content_block_start", "index": addition.place, "content_block": begun})
            if addition.text:
                events.append(_delta(addition, block))
        return events

    def _message(self, content: list[dict[str, Any]], reason: str | None, stop: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self._handle.identity}",
            "type": "message",
            "role": "assistant",
            "model": self._body.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": self._usage(),
        }

    def _ending(self) -> tuple[str, str | None]:
        """Why it ended, and the stop sequence where one did."""
        sample = self._handle.samples[0]
        reason = self._blocks.reason(sample)
        if reason == "length":
            return "max_tokens", None
        if reason == "tool_calls":
            return "tool_use", None
        generated = self._tokenizer.decode(sample.token_ids)
        stop = stop_of(generated, sample.text, self._body.stop_sequences)
        return ("end_turn", None) if stop is None else ("stop_sequence", stop)

    def _usage(self) -> dict[str, int]:
        """As Anthropic counts: what came out of the cache is no input."""
        used = self._handle.usage
        return {
            "input_tokens": used.prompt_tokens - used.cached_tokens,
            "cache_read_input_tokens": used.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": used.generated_tokens,
        }


def _shown(block: Block) -> dict[str, Any]:
    """A block of the content. A call that max_tokens or a stop sequence cut has no whole JSON: its input is empty."""
    if block.name is None:
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.identity, "name": block.name, "input": _object(block.text)}


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _delta(addition: Addition, block: Block) -> dict[str, Any]:
    if block.name is None:
        delta = {"type": "text_delta", "text": addition.text}
    else:
        delta = {"type": "input_json_delta", "partial_json": addition.text}
    return {"type": "content_block_delta", "index": addition.place, "delta": delta}


def stop_of(full: str, text: str, stops: Sequence[str]) -> str | None:
    """The stop sequence that follows the text in all that was generated; None where none does."""
    return next((stop for stop in stops if full.startswith(stop, len(text))), None)
