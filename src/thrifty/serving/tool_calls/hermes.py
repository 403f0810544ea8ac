"""Hermes' and Qwen's calls: `<tool_call>`, a line of JSON, `</tool_call>`; one pair for every call."""

from __future__ import annotations

import re
from collections.abc import Mapping

from thrifty.decoding.grammar import Grammar
from thrifty.serving.tool_calls.call_parser import CallParser, Form, head_of
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat, call_rules, marker

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FORM = Form(OPENING, head_of("arguments"), re.compile(rf"\s*\}}\s*{CLOSING}"))


class Hermes(ToolFormat):
    """Text, then calls."""

    name = "hermes"
    markers = (OPENING, CLOSING)

    def knows(self, template: str) -> bool:
        return OPENING in template

    def grammar(self, offer: Offer, control: Mapping[str, int]) -> Grammar:
        more = "" if offer.single else r' ("\n" opening body)*'
        rules = [
            f"opening: {marker(OPENING, control)}",
            rf'body: "\n" call "\n" {marker(CLOSING, control)}',
            call_rules(offer.functions, "arguments"),
        ]
        if offer.forced:
            return Grammar.lark("\n".join([f"start: opening body{more}", *rules]))
        if OPENING in control:
            first = "first: TEXT opening"
        else:
            first = f"first[lazy]: TEXT {marker(OPENING, control)}"
        return Grammar.lark("\n".join([f"start: TEXT | first body{more}", r"TEXT: /(.|\n)*/", first, *rules]))

    def parser(self) -> CallParser:
        return CallParser(FORM)
