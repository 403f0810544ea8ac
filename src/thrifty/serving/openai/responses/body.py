"""What a request for a response may ask for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.serving.bodies.body import Body
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.openai.responses.input_items import conversation
from thrifty.serving.tool_calls.offer import Choice, FunctionBody, FunctionName, Offer, offer_of


class TextFormat(Body):
    """Any text, any JSON object, or JSON of a named schema. Every schema is enforced; `strict` changes nothing."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None

    @property
    def grammar(self) -> Grammar | None:
        """None for any text. Raises RequestError where the schema or its name is missing, or does not belong."""
        named = self.type == "json_schema"
        for field, value in (("name", self.name), ("schema", self.schema_)):
            if (value is not None) != named:
                raise RequestError(
                    f"text.format.type is '{self.type}'; 'json_schema' comes with text.format.{field}, and no other "
                    "type does",
                    param=f"text.format.{field}",
                )
        if self.schema_ is not None:
            return Grammar.json_schema(self.schema_)
        return Grammar.json_object() if self.type == "json_object" else None


class TextOptions(Body):
    """How the text is to look."""

    format: TextFormat = Field(default_factory=TextFormat)


class FunctionTool(FunctionBody):
    """A tool: functions only."""

    type: Literal["function"]


class NamedFunction(FunctionName):
    """The function that has to be called."""

    type: Literal["function"]


class ResponseBody(Body):
    """The body. metadata is given back."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: StrictInt | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: StrictBool = False
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    text: TextOptions = Field(default_factory=TextOptions)
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: StrictBool | None = None
    truncation: Literal["disabled"] | None = None
    user: str | None = None
    thrifty: Extensions = Field(default_factory=Extensions)

    def messages(self) -> list[dict[str, Any]]:
        """The instructions and the input as a conversation. Raises RequestError as `input_items` does."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        return [*first, *conversation(self.input)]

    @property
    def form(self) -> tuple[Grammar, str] | None:
        """The grammar that the text must have, and the field that gave it. Raises RequestError."""
        grammar = self.text.format.grammar
        return None if grammar is None else (grammar, "text.format")

    @property
    def offer(self) -> Offer | None:
        """The calls that the answer may hold, None where it is text. Raises RequestError."""
        choice: Choice | None = self.tool_choice
        offer = offer_of(self.tools or None, choice, self.parallel_tool_calls, "tools.{}.parameters")
        if offer is not None and self.form is not None:
            raise RequestError(
                "text.format is given with tools, whose calls have a form of their own; give one", 400, "text.format"
            )
        return offer

    def sampling(self, grammar: Grammar | None) -> SamplingParameters:
        """As the engine takes them."""
        chosen = {} if self.top_p is None else {"top_p": self.top_p}
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParameters.of(
            temperature=temperature, max_tokens=self.max_output_tokens, grammar=grammar, **chosen
        )
