"""The events of a streamed response (see responses.py), each with its number."""

from __future__ import annotations

from typing import Any, Protocol

from thrifty.engine.answer import Event
from thrifty.serving.answers import StreamForm, named_event
from thrifty.serving.errors import described


class Answer(Protocol):
    """What the events tell of (`responses.ResponseAnswer`)."""

    message_id: str

    @property
    def text(self) -> str: ...

    @property
    def status(self) -> str: ...

    def shown(self, status: str) -> dict[str, Any]: ...

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]: ...

    def part(self, text: str) -> dict[str, Any]: ...


class ResponseEvents:
    """A response of one message of one part, as it comes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._number = 0

    def first(self) -> list[dict[str, Any]]:
        """The response, its message and its part, all empty."""
        answer = self._answer
        return [
            self._event("response.created", response=answer.shown("in_progress")),
            self._event("response.in_progress", response=answer.shown("in_progress")),
            self._event("response.output_item.added", output_index=0, item=answer.message("in_progress", [])),
            self._of_part("response.content_part.added", part=answer.part("")),
        ]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds."""
        if not event.text:
            return []
        return [self._of_part("response.output_text.delta", delta=event.text, logprobs=[])]

    def last(self) -> list[dict[str, Any]]:
        """The same things, whole."""
        answer, status = self._answer, self._answer.status
        part = answer.part(answer.text)
        return [
            self._of_part("response.output_text.done", text=answer.text, logprobs=[]),
            self._of_part("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=answer.message(status, [part])),
            self._event(f"response.{status}", response=answer.shown(status)),
        ]

    def failed(self, error: Exception) -> dict[str, Any]:
        """What ended it."""
        told = described(error)[1]["error"]
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _of_part(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._answer.message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}


def response_form(events: ResponseEvents) -> StreamForm:
    """Named events without an end mark."""
    return StreamForm(line=named_event, failed=events.failed, end=b"")
