"""Recall of one key whose question stands before the prose: who chooses by a prompt's last tokens does not see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks._framing import SEPARATOR, Frame, Mode
from thrifty.evaluation.tasks.recall import Recall
from thrifty.evaluation.tasks.task import Tokens


@dataclass(frozen=True, kw_only=True)
class RecallAskedFirst(Recall):
    """`recall` with the question at the beginning of what is compressed, whatever the mode: it is part of it."""

    name: ClassVar[str] = "recall-asked-first"

    mode: Mode = "aware"

    def bound(self, frame: Frame) -> int:
        """See Recall: less what parts the question from the prose."""
        return self.length - frame.size(SEPARATOR)

    def framed(self, frame: Frame, context: str, question: str, lead: str) -> tuple[Tokens, Tokens]:
        """See Recall."""
        prompt = frame.before + frame.tokens(question + SEPARATOR + context)
        return prompt, frame.tokens(frame.after + lead)
