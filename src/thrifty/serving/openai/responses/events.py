"""The events of a streamed response, each with its number."""

from __future__ import annotations

from typing import Any

from thrifty.engine.answer import Event
from thrifty.serving.answers import StreamForm, named_event
from thrifty.serving.errors import described
from thrifty.serving.openai.responses.answer import Answer
from thrifty.serving.tool_calls.blocks import Addition


class ResponseEvents:
    """A response as it comes: its items open and close one after the other."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._number = 0

    def first(self) -> list[dict[str, Any]]:
        """The response, empty."""
        shown = self._answer.shown("in_progress")
        return [self._event("response.created", response=shown), self._event("response.in_progress", response=shown)]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds."""
        return self._of(self._answer.blocks.push(event))

    def last(self) -> list[dict[str, Any]]:
        """The end of the last item, and the response, whole."""
        answer, status = self._answer, self._answer.status
        events = self._of(answer.blocks.end(answer.handle.samples[0]))
        events += self._closed(len(answer.blocks.all) - 1)
        return [*events, self._event(f"response.{status}", response=answer.shown(status))]

    def failed(self, error: Exception) -> dict[str, Any]:
        """What ended it."""
        told = described(error)[1]["error"]
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _of(self, additions: list[Addition]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for addition in additions:
            if addition.opened:
                events += self._closed(addition.place - 1) + self._opened(addition.place)
            if addition.text:
                events.append(self._more(addition))
        return events

    def _opened(self, place: int) -> list[dict[str, Any]]:
        item = self._answer.begun(place)
        events = [self._event("response.output_item.added", output_index=place, item=item)]
        if item["type"] == "message":
            events.append(self._of_part("response.content_part.added", place, part=self._answer.part("")))
        return events

    def _more(self, addition: Addition) -> dict[str, Any]:
        if self._is_call(addition.place):
            return self._of_item("response.function_call_arguments.delta", addition.place, delta=addition.text)
        return self._of_part("response.output_text.delta", addition.place, delta=addition.text, logprobs=[])

    def _closed(self, place: int) -> list[dict[str, Any]]:
        """The end of an item; nothing in front of the first."""
        if place < 0:
            return []
        item = self._answer.item(place)
        if self._is_call(place):
            told = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._of_item("response.function_call_arguments.done", place, **told)]
        else:
            (part,) = item["content"]
            events = [
                self._of_part("response.output_text.done", place, text=part["text"], logprobs=[]),
                self._of_part("response.content_part.done", place, part=part),
            ]
        return [*events, self._event("response.output_item.done", output_index=place, item=item)]

    def _is_call(self, place: int) -> bool:
        return self._answer.blocks.all[place].name is not None

    def _of_part(self, kind: str, place: int, **fields: Any) -> dict[str, Any]:
        return self._of_item(kind, place, content_index=0, **fields)

    def _of_item(self, kind: str, place: int, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._answer.item_id(place), output_index=place, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}


def response_form(events: ResponseEvents) -> StreamForm:
    """Named events without an end mark."""
    return StreamForm(line=named_event, failed=events.failed, end=b"")
