"""One response in the shape that clients know."""

from __future__ import annotations

import time
from typing import Any

from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.openai.responses.body import ResponseBody
from thrifty.serving.tool_calls.blocks import Blocks


class Answer:
    """A response over a request of the engine. blocks: its output."""

    def __init__(self, body: ResponseBody, handle: AsyncHandle, blocks: Blocks) -> None:
        self.handle, self.blocks, self._body = handle, blocks, body
        self._created = int(time.time())

    def shown(self, status: str) -> dict[str, Any]:
        """The response now. status: "in_progress", "completed", "incomplete" or "failed"."""
        body, over = self._body, status in ("completed", "incomplete")
        return {
            "id": f"resp_{self.handle.identity}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": [self.item(place) for place in range(len(self.blocks.all))] if over else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": self._choice(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if over else None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    @property
    def status(self) -> str:
        """How it ended."""
        return "incomplete" if self.handle.samples[0].finish_reason == "length" else "completed"

    def item(self, place: int) -> dict[str, Any]:
        """An item of the output, whole: a message of one part, or a call."""
        block, last = self.blocks.all[place], place == len(self.blocks.all) - 1
        if block.name is not None:
            status = "incomplete" if self.blocks.is_cut(place) else "completed"
            return self.begun(place) | {"status": status, "arguments": block.text}
        status = self.status if last else "completed"
        return self.begun(place) | {"status": status, "content": [self.part(block.text)]}

    def begun(self, place: int) -> dict[str, Any]:
        """An item of the output that is empty yet."""
        block = self.blocks.all[place]
        shared = {"id": self.item_id(place), "status": "in_progress"}
        if block.name is not None:
            call = {"type": "function_call", "call_id": block.identity, "name": block.name, "arguments": ""}
            return shared | call
        return shared | {"type": "message", "role": "assistant", "content": []}

    def item_id(self, place: int) -> str:
        """The id of an item of the output."""
        kind = "msg" if self.blocks.all[place].name is None else "fc"
        return f"{kind}_{self.handle.identity}" + (f"_{place}" if place else "")

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The only part of a message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _choice(self) -> str | dict[str, Any]:
        choice = self._body.tool_choice
        if choice is None:
            return "auto" if self._body.tools else "none"
        return choice if isinstance(choice, str) else choice.model_dump()

    def _usage(self) -> dict[str, Any]:
        used = self.handle.usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.generated_tokens,
        }
