"""Mistral's calls: `[TOOL_CALLS]` and a JSON list of them."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping

from thrifty.decoding.grammar import Grammar
from thrifty.serving.tool_calls.call_parser import CallParser, Form, head_of
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat, call_rules, marker

OPENING = "[TOOL_CALLS]"
LATER = "[ARGS]"  # of the templates that write a name and its arguments without a list
FORM = Form(OPENING, head_of("arguments", r"\s*\[?"), re.compile(r"\s*\}\s*\]"), re.compile(r"\s*\}\s*,"))
IDENTITY = 9  # characters of a call's id; templates refuse others


class Mistral(ToolFormat):
    """Text, then a list of calls."""

    name = "mistral"
    markers = (OPENING,)

    def knows(self, template: str) -> bool:
        return OPENING in template and LATER not in template

    def grammar(self, offer: Offer, control: Mapping[str, int]) -> Grammar:
        more = "" if offer.single else ' (", " call)*'
        opening = marker(OPENING, control)
        rules = [f'list: / ?/ "[" call{more} "]"', call_rules(offer.functions, "arguments")]
        if offer.forced:
            return Grammar.lark("\n".join([f"start: {opening} list", *rules]))
        first = f"first: TEXT {opening}" if OPENING in control else f"first[lazy]: TEXT {opening}"
        return Grammar.lark("\n".join(["start: TEXT | first list", r"TEXT: /(.|\n)*/", first, *rules]))

    def parser(self, offer: Offer) -> CallParser:
        return CallParser(FORM)

    def identity(self) -> str:
        letters = string.ascii_letters + string.digits
        return "".join(secrets.choice(letters) for _ in range(IDENTITY))
