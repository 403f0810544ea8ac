"""Recall of one key as a chat asks for it: the whole turn is compressed, the question before the prose or behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from thrifty.evaluation.tasks._framing import SEPARATOR, Frame, Mode
from thrifty.evaluation.tasks.recall import Recall
from thrifty.evaluation.tasks.task import Tokens


@dataclass(frozen=True, kw_only=True)
class RecallAsked(Recall):
    """`recall` with a prompt that ends where the answer begins: what looks ahead from there sees an answer, and what
    chooses by the last tokens sees the end of the turn. The question is part of it whatever the mode.

    place: where the question stands.
    """

    name: ClassVar[str] = "recall-asked"

    mode: Mode = "aware"
    place: Literal["first", "last"] = "last"

    def bound(self, frame: Frame) -> int:
        """See Recall: less what stands beside prose and question."""
        return self.length - frame.size(SEPARATOR) - frame.size(frame.after)

    def framed(self, frame: Frame, context: str, question: str, lead: str) -> tuple[Tokens, Tokens]:
        """See Recall."""
        parts = (question, context) if self.place == "first" else (context, question)
        return frame.before + frame.tokens(SEPARATOR.join(parts) + frame.after), frame.tokens(lead)
