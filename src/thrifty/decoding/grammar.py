"""What an answer must look like, as callers say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thrifty.decoding.option_values import shown
from thrifty.errors import PromptError

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """A grammar of whole answers. Make one by its class methods; equal ones are compiled once.

    kind: how `text` is to be read: a JSON schema, a regular expression, a JSON list of texts, or a Lark grammar in
    llguidance's dialect.
    """

    kind: Kind
    text: str

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """JSON that a schema describes. Raises PromptError for what is no JSON object; a keyword that cannot be
        enforced is an error when the grammar is compiled.
        """
        if not isinstance(schema, Mapping | bool):
            raise PromptError(f"the JSON schema is {shown(schema)}; use an object such as {{'type': 'object'}}")
        try:
            return cls("json_schema", json.dumps(schema, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(f"the JSON schema is no JSON: {error}") from error

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression (the syntax of Rust's `regex`, anchored at both ends) matches."""
        return cls("regex", _text("the regular expression", pattern))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise PromptError(f"the choice is {shown(texts)}; use a list of at least 1 text")
        return cls("choice", json.dumps([_text("a text of the choice", text) for text in texts]))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A Lark grammar with the rule `start`, in llguidance's dialect (`%json {…}` embeds a schema)."""
        return cls("lark", _text("the grammar", text))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise PromptError(f"{name} is {shown(value)}; use a text of at least 1 character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} cannot be written in UTF-8: {error.reason}") from error
    return value
