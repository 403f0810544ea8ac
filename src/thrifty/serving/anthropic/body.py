"""What a request for a message may ask for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.serving.anthropic.conversation import conversation
from thrifty.serving.bodies.body import Body
from thrifty.serving.bodies.chat_messages import text_of
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.tool_calls.offer import NAME, Choice, FunctionBody, FunctionName, Offer, offer_of

CHOICES: dict[str, Choice] = {"auto": "auto", "any": "required", "none": "none"}
"""Anthropic's words, and what they are elsewhere."""


class Metadata(Body):
    """Who asks; nothing depends on it."""

    user_id: str | None = None


class Thinking(Body):
    """Turned off: the model's template decides."""

    type: Literal["disabled"]


class Tool(Body):
    """A function that may be called. input_schema: a JSON schema of one object; every schema is enforced, `strict`
    changes nothing.
    """

    name: str = Field(pattern=NAME)
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: StrictBool | None = None

    @property
    def function(self) -> FunctionBody:
        """As it is elsewhere."""
        told: dict[str, Any] = self.model_dump(include={"name", "description"}, exclude_unset=True)
        return FunctionBody(parameters=self.input_schema, **told)


class ToolChoice(Body):
    """Whether a tool is called. name: of the one that has to be."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: StrictBool = False


class NamedTool(Body):
    """The tool that has to be called; it is called once."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: StrictBool = False


class CountBody(Body):
    """A conversation, and the tools that it may use."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | NamedTool | None = Field(default=None, discriminator="type")
    thinking: Thinking | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """System text and messages. Raises RequestError for roles and contents that are not taken."""
        told = [] if self.system is None else [{"role": "system", "content": text_of(self.system, "system")}]
        return [*told, *conversation(self.messages)]

    @property
    def offer(self) -> Offer | None:
        """The calls that the answer may hold, None where it is text. Raises RequestError."""
        given = self.tool_choice
        choice: Choice | None = None
        parallel: bool | None = None
        if isinstance(given, NamedTool):
            choice = FunctionName(name=given.name)
        elif given is not None:
            choice = CHOICES[given.type]
        if given is not None and given.disable_parallel_tool_use:
            parallel = False
        functions = [tool.function for tool in self.tools] if self.tools else None
        return offer_of(functions, choice, parallel, "tools.{}.input_schema")


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

    def sampling(self, grammar: Grammar | None) -> SamplingParameters:
        """As the engine takes them."""
        given = {"top_p": self.top_p, "top_k": self.top_k, "stop": self.stop_sequences or None}
        chosen = {name: value for name, value in given.items() if value is not None}
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParameters.of(temperature=temperature, max_tokens=self.max_tokens, grammar=grammar, **chosen)
