"""Llama 3's calls: an answer that is `{"name": …, "parameters": …}`, behind `<|python_tag|>` or not. One call an
answer: its templates take no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from thrifty.decoding.grammar import Grammar
from thrifty.serving.tool_calls.call_parser import CallParser, Form, Piece, head_of
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.tool_format import ToolFormat, call_rules, marker

TAG = "<|python_tag|>"
BEGINNING = '{"name"'
FORM = Form("", head_of("parameters", rf"\s*(?:{re.escape(TAG)})?"), re.compile(r"\s*\}"))


class Llama(ToolFormat):
    """A call, or text."""

    name = "llama"
    markers = (TAG,)

    def knows(self, template: str) -> bool:
        return '"parameters": ' in template and ("ipython" in template or TAG in template)

    def grammar(self, offer: Offer, control: Mapping[str, int]) -> Grammar:
        rules = call_rules(offer.functions, "parameters")
        if offer.forced:
            return Grammar.lark(f"start: call\n{rules}")
        text = r'TEXT: /(.|\n)*/ & ~/[ \n]*(<\|python_tag\|>)?\{"name"(.|\n)*/'
        return Grammar.lark(f"start: TEXT | call | {marker(TAG, control)} call\n{text}\n{rules}")

    def parser(self, offer: Offer) -> CallParser:
        return LlamaParser(FORM)


class LlamaParser(CallParser):
    """An answer is a call where it begins like one."""

    _decided = False

    def _text(self, pieces: list[Piece]) -> bool:
        begun = self._held.lstrip().removeprefix(TAG)
        undecided = not self._decided and not self.calls
        if undecided and begun.startswith(BEGINNING):
            self._step = self._head
            return True
        if undecided and (BEGINNING.startswith(begun) or TAG.startswith(begun)):
            return False
        self._decided = True
        if self._held and not self.calls:
            pieces.append(Piece(self._held))
        self._held = ""
        return False
