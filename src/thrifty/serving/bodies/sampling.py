"""What requests have in common: fields of sampling, and extensions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import MOST_PRIORITY
from thrifty.serving.bodies.body import Body
from thrifty.serving.bodies.counterfactual import Counterfactual
from thrifty.serving.bodies.structured import ResponseFormat, StructuredOutputs, grammar_of
from thrifty.serving.errors import RequestError


class StreamOptions(Body):
    """include_usage: one more chunk at the end, without choices. continuous_usage_stats (vLLM's): every chunk has the
    usage so far; load generators count tokens by it.
    """

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False

    @model_validator(mode="after")
    def _belong_together(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise PydanticCustomError("usage", "continuous_usage_stats needs include_usage = true")
        return self


class Extensions(Body):
    """What OpenAI's API has no field for. cache: tables of cache techniques, as in a recipe. prompt, decoding:
    likewise, of decoding one table at most. cache_memory: a bound on the request's cache, in bytes or as "20MB".
    priority: higher ones are admitted first. session: the name of a conversation that goes on from its own compressed
    cache. counterfactual: what is replayed of another answer.
    """

    cache: list[dict[str, Any]] | None = None
    prompt: list[dict[str, Any]] | None = None
    decoding: list[dict[str, Any]] | None = None
    cache_memory: StrictInt | str | None = None
    session: str | None = None
    counterfactual: Counterfactual | None = None
    priority: StrictInt | None = Field(default=None, ge=-MOST_PRIORITY, le=MOST_PRIORITY)


class SamplingBody(Body):
    """Fields that chat and text completions share. Defaults are OpenAI's."""

    model: str
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: StrictInt = Field(default=1, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: StrictInt | None = None
    min_p: float | None = None
    max_tokens: StrictInt | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[StrictInt] | None = None
    seed: StrictInt | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: StrictBool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    #: Accepted, as all clients may send it; nothing depends on it.
    user: str | None = None
    thrifty: Extensions = Field(default_factory=Extensions)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def form(self) -> tuple[Grammar, str] | None:
        """The grammar that answers must have, and the field that gave it. Raises RequestError."""
        return grammar_of(self.response_format, self.structured_outputs)

    def sampling(
        self, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None
    ) -> SamplingParameters:
        """As the engine takes them. Raises PromptError that names the field, the value and the range."""
        if grammar is not None and self.ignore_eos:
            raise RequestError(
                "ignore_eos goes on where the answer's form has ended; leave it or the form out", param="ignore_eos"
            )
        given = {
            "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p, "stop": self.stop,
            "stop_token_ids": self.stop_token_ids, "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty, "repetition_penalty": self.repetition_penalty,
            "seed": self.seed, "logprobs": logprobs,
        }  # fmt: skip
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.logit_bias is not None:
            chosen["logit_bias"] = _biases(self.logit_bias)
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParameters.of(
            temperature=temperature, max_tokens=max_tokens, ignore_eos=self.ignore_eos, grammar=grammar, **chosen
        )


def _biases(given: dict[str, float]) -> dict[int, float]:
    for token in given:
        if not token.isdecimal() or len(token) > 10:
            raise RequestError(f"logit_bias names '{token:.20}'; its keys are token ids", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


class Usage(BaseModel):
    """Tokens of a request; `thrifty` says what it cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    thrifty: dict[str, float | int | str]
