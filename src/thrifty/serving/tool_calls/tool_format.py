"""The base of formats of calls, and what their grammars have in common."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import ClassVar

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.grammars import WHITESPACE
from thrifty.serving.tool_calls.call_parser import CallParser
from thrifty.serving.tool_calls.offer import Function, Offer


class ToolFormat:
    """How a family of models writes calls. markers: texts that may be control tokens of its vocabulary."""

    name: ClassVar[str]
    markers: ClassVar[tuple[str, ...]]

    def knows(self, template: str) -> bool:
        """Whether a chat template teaches this format."""
        raise NotImplementedError

    def grammar(self, offer: Offer, control: Mapping[str, int]) -> Grammar:
        """The grammar of answers. control: ids of the markers that are control tokens."""
        raise NotImplementedError

    def parser(self, offer: Offer) -> CallParser:
        """A new parser of one answer to an offer."""
        raise NotImplementedError

    def identity(self) -> str:
        """A new id of a call."""
        return f"call_{secrets.token_hex(12)}"


def marker(text: str, control: Mapping[str, int]) -> str:
    """A marker in a Lark grammar: the control token, or the text."""
    return f"<[{control[text]}]>" if text in control else json.dumps(text)


def call_rules(functions: tuple[Function, ...], arguments: str) -> str:
    """Lark rules, `call` first: `{"name": "f", "arguments": …}` of any of the functions. Every schema is a document of
    its own, so that its references hold.
    """
    lines = ["call: " + " | ".join(f"call_{place}" for place in range(len(functions)))]
    for place, function in enumerate(functions):
        head = json.dumps(f'{{"name": "{function.name}", "{arguments}": ')
        schema = {"x-guidance": {"whitespace_pattern": WHITESPACE}, **function.schema}
        lines += [f'call_{place}: {head} arguments_{place} "}}"', f"arguments_{place}: %json {json.dumps(schema)}"]
    return "\n".join(lines) + "\n"
