"""Hermes' and Qwen's calls: `<tool_call>`, a line of JSON, `</tool_call>`; one pair for every call.

Small models leave the markers out: an answer that is nothing but such JSON with the name of an offered function is a
call, too, bare or in a fence of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from thrifty.decoding.grammar import Grammar
from thrifty.serving.tool_calls.call_parser import CallParser, Form, Piece, head_of
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat, call_rules, marker

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FORM = Form(OPENING, head_of("arguments"), re.compile(rf"\s*\}}\s*{CLOSING}"))
OTHERS = ("<function=", "<arg_key>")  # of templates with the same marker and no JSON inside
FENCES = ("", "```", "```json")
FENCE, SPACE = "(```(json)?)?", r"[ \n\t]{0,32}"


class Hermes(ToolFormat):
    """Text, then calls."""

    name = "hermes"
    markers = (OPENING, CLOSING)

    def knows(self, template: str) -> bool:
        return OPENING in template and not any(other in template for other in OTHERS)

    def grammar(self, offer: Offer, control: Mapping[str, int]) -> Grammar:
        more = "" if offer.single else r' ("\n" opening body)*'
        rules = [
            f"opening: {marker(OPENING, control)}",
            rf'body: "\n" call "\n" {marker(CLOSING, control)}',
            call_rules(offer.functions, "arguments"),
        ]
        if offer.forced:
            return Grammar.lark("\n".join([f"start: opening body{more}", *rules]))
        first = "first: TEXT" if OPENING in control else "first[lazy]: TEXT"
        rules += [f"{first} {marker(OPENING, control)}", *_bare_rules(_names(offer))]
        return Grammar.lark("\n".join([f"start: TEXT | bare | first body{more}", *rules]))

    def parser(self, offer: Offer) -> CallParser:
        return CallParser(FORM) if offer.forced else HermesParser(_names(offer))


class HermesParser(CallParser):
    """Of an answer that may be text. names: of the offered functions."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(FORM)
        self._targets = [f'{fence}{{"name":"{name}","arguments":{{' for fence in FENCES for name in names]
        alternatives = "|".join(map(re.escape, names))
        before = rf'{FENCE}(?={SPACE}\{{{SPACE}"name"{SPACE}:{SPACE}"(?:{alternatives})")'
        self._bare = Form("", head_of("arguments", before), re.compile(r"\s*\}"))
        self._begun = False

    def _text(self, pieces: list[Piece]) -> bool:
        if self.form is self._bare:
            self._held = ""  # a fence
            return False
        if not self._begun:
            if self._bare.head.match(self._held):
                self.form, self._step = self._bare, self._head
                return True
            compact = "".join(self._held.split())
            if any(target.startswith(compact) for target in self._targets):
                return False
            self._begun = True
        return super()._text(pieces)


def _names(offer: Offer) -> list[str]:
    return [function.name for function in offer.functions]


def _bare_rules(names: Sequence[str]) -> list[str]:
    """Rules of a call without markers, and of TEXT, which does not begin like one."""

    def head(name: str) -> str:
        return rf'{FENCE}{SPACE}\{{{SPACE}"name"{SPACE}:{SPACE}"{name}"{SPACE},{SPACE}"arguments"{SPACE}:'

    escaped = [name.replace(".", r"\.") for name in names]
    places = range(len(names))
    return [
        "bare: " + " | ".join(f"bare_{place}" for place in places),
        *(rf"bare_{place}: BARE_{place} arguments_{place} /{SPACE}\}}({SPACE}```)?\n?/" for place in places),
        *(f"BARE_{place}: /{head(escaped[place])}{SPACE}/" for place in places),
        rf"TEXT: /(.|\n)*/ & ~/{head('(' + '|'.join(escaped) + ')')}(.|\n)*/",
    ]
