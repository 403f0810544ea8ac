"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API for texts, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool, StrictInt

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.answer import Event
from thrifty.engine.async_handle import AsyncHandle
from thrifty.serving.access.keys import key_of
from thrifty.serving.answers import STREAMED, StreamForm, named_event, streamed, unless_gone, whole
from thrifty.serving.anthropic.errors import DOCUMENTED, error_body
from thrifty.serving.bodies.chat_messages import checked, text_of
from thrifty.serving.bodies.sampling import Body, Extensions
from thrifty.serving.errors import RequestError, described
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.service import Service


class Metadata(Body):
    """Who asks; nothing depends on it."""

    user_id: str | None = None


class Thinking(Body):
    """Turned off: the model's template decides."""

    type: Literal["disabled"]


class CountBody(Body):
    """A conversation."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    thinking: Thinking | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """System text and messages. Raises RequestError for roles and contents that are not taken."""
        for index, message in enumerate(self.messages):
            if message.get("role") not in ("user", "assistant"):
                place = f"messages.{index}.role"
                raise RequestError(f"'{place}' is {message.get('role')!r:.60}; use user or assistant", param=place)
        if self.messages[-1]["role"] != "user":
            place = f"messages.{len(self.messages) - 1}.role"
            raise RequestError(f"'{place}': the last message must be the user's", param=place)
        told = [] if self.system is None else [{"role": "system", "content": text_of(self.system, "system")}]
        return [*told, *checked(self.messages)]


class MessageBody(CountBody):
    """What a message may ask for."""

    max_tokens: StrictInt
    stop_sequences: list[str] = Field(default_factory=list)
    stream: StrictBool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: StrictInt | None = None
    metadata: Metadata | None = None
    thrifty: Extensions = Field(default_factory=Extensions)

    def sampling(self) -> SamplingParameters:
        """As the engine takes them."""
        given = {"top_p": self.top_p, "top_k": self.top_k, "stop": self.stop_sequences or None}
        chosen = {name: value for name, value in given.items() if value is not None}
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParameters.of(temperature=temperature, max_tokens=self.max_tokens, **chosen)


class MessageAnswer:
    """One message in the shape that clients know, whole or in events."""

    def __init__(self, service: Service, body: MessageBody, handle: AsyncHandle) -> None:
        self._handle, self._body = handle, body
        self._tokenizer = service.model.require_tokenizer()

    def whole(self) -> dict[str, Any]:
        """The message when it is over."""
        reason, stop = self._ending()
        content = [{"type": "text", "text": self._handle.samples[0].text}]
        return self._message(content, reason, stop)

    def first(self) -> list[dict[str, Any]]:
        """The message and its only block, empty."""
        return [
            {"type": "message_start", "message": self._message([], None, None)},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What an event adds."""
        if not event.text:
            return []
        return [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": event.text}},
        ]

    def last(self) -> list[dict[str, Any]]:
        """The end of the block, and why the message ended."""
        reason, stop = self._ending()
        return [
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": stop},
                "usage": self._usage(),
            },
            {"type": "message_stop"},
        ]

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
        if sample.finish_reason == "length":
            return "max_tokens", None
        stop = stop_of(self._tokenizer.decode(sample.token_ids), sample.text, self._body.stop_sequences)
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


def stop_of(full: str, text: str, stops: Sequence[str]) -> str | None:
    """The stop sequence that follows the text in all that was generated; None where none does."""
    return next((stop for stop in stops if full.startswith(stop, len(text))), None)


FORM = StreamForm(
    line=named_event,
    failed=lambda error: error_body(*described(error)),
    ping=named_event({"type": "ping"}),
    end=b"",
)


def router(models: ModelShelf) -> APIRouter:
    """Both endpoints over the models of a server."""
    routes = APIRouter()

    @routes.post("/v1/messages", responses=STREAMED | DOCUMENTED)
    async def messages(body: MessageBody, http: Request) -> Response:
        """Answer a conversation."""
        service = await models.get(body.model)
        prompt = await service.encode_chat(body.conversation())
        handle = await service.submit(prompt, body.sampling(), 1, body.thrifty, key_of(http))
        answer = MessageAnswer(service, body, handle)
        if body.stream:
            keep_alive = service.settings.keep_alive_seconds
            return streamed(handle, service.metrics, answer.first(), answer.of, answer.last, keep_alive, FORM)
        await unless_gone(http, whole(handle, service.metrics))
        return JSONResponse(answer.whole())

    @routes.post("/v1/messages/count_tokens", responses=DOCUMENTED)
    async def count_tokens(body: CountBody) -> dict[str, int]:
        """The tokens that a conversation has as a prompt."""
        service = await models.get(body.model)
        return {"input_tokens": len(await service.encode_chat(body.conversation()))}

    return routes
