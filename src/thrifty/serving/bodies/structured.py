"""What a client says about the form of an answer: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, StrictBool

from thrifty.decoding.grammar import Grammar
from thrifty.errors import PromptError
from thrifty.serving.bodies.body import Body
from thrifty.serving.errors import RequestError


class NamedSchema(Body):
    """A JSON schema under a name. Every schema is enforced; `strict` changes nothing."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Body):
    """Any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def grammar(self) -> Grammar | None:
        """None for any text. Raises RequestError where the schema is missing, or does not belong."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError(
                f"response_format.type is '{self.type}'; 'json_schema' comes with response_format.json_schema, and no "
                "other type does",
                param="response_format.json_schema",
            )
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema.schema_)
        return Grammar.json_object() if self.type == "json_object" else None


class StructuredOutputs(Body):
    """One of: a JSON schema (or its text), a regular expression, a list of texts, a Lark grammar, any JSON object."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: StrictBool | None = None

    @property
    def chosen(self) -> tuple[Grammar, str]:
        """The grammar, and the field that gave it. Raises RequestError unless one of them is given, and not empty."""
        makers = {
            "json": lambda: Grammar.json_schema(_schema(self.json_)),
            "regex": lambda: Grammar.regex(self.regex or ""),
            "choice": lambda: Grammar.choice(self.choice or []),
            "grammar": lambda: Grammar.lark(self.grammar or ""),
            "json_object": Grammar.json_object,
        }
        given = {"json": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        names = [name for name, value in given.items() if value is not None]
        names += ["json_object"] if self.json_object else []
        if len(names) != 1:
            told = " and ".join(names) or "none"
            raise RequestError(
                f"structured_outputs takes one of {', '.join(makers)}; {told} is given", param="structured_outputs"
            )
        field = f"structured_outputs.{names[0]}"
        try:
            return makers[names[0]](), field
        except PromptError as error:
            raise RequestError(str(error), param=field) from error


def grammar_of(
    response_format: ResponseFormat | None, structured: StructuredOutputs | None
) -> tuple[Grammar, str] | None:
    """The grammar that a request asks for, and the field that gave it; None for any text. Raises as both do."""
    wanted = None if response_format is None else response_format.grammar
    if structured is None:
        return None if wanted is None else (wanted, "response_format")
    if wanted is not None:
        raise RequestError("response_format and structured_outputs are both given; give one", param="response_format")
    return structured.chosen


def _schema(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"structured_outputs.json is a text that is no JSON: {error}", param="structured_outputs.json"
        ) from error
