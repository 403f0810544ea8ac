"""A question in the words of the model's chat template, cut where the compressed context ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from thrifty.evaluation.tasks.task import Tokens

Mode = Literal["agnostic", "aware"]
"""agnostic: the context is compressed first, then the question comes. aware: the question is part of it."""

MARKS = ("FIRSTMARK", "SECONDMARK", "THIRDMARK")
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Frame:
    """What the template puts around a user's text. before: token ids in front of it. after: text from its end to
    the answer. between: text from the end of an answer to the next text of the user.
    """

    tokenizer: Any
    before: Tokens
    after: str
    between: str

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """The frame of a model; one without a chat template gets plain lines."""
        if not tokenizer.has_chat_template:
            return cls.plain(tokenizer)
        first, second, third = MARKS
        before, after = tokenizer.apply_chat_template([{"role": "user", "content": first}]).split(first)
        turns = [("user", first), ("assistant", second), ("user", third)]
        text = tokenizer.apply_chat_template([{"role": role, "content": content} for role, content in turns])
        between = text.split(second)[1].split(third)[0]
        return cls(tokenizer, tuple(tokenizer.encode(before)), after, between)

    @classmethod
    def plain(cls, tokenizer: Any) -> Frame:
        """No template: the answer begins on the next line."""
        return cls(tokenizer, tuple(tokenizer.encode("")), "\n", SEPARATOR)

    def tokens(self, text: str) -> Tokens:
        """Token ids of a piece in the middle."""
        return tuple(self.tokenizer.encode(text, add_bos=False))

    def size(self, text: str) -> int:
        """Tokens of a piece in the middle."""
        return len(self.tokens(text))

    def first(self, context: str, question: str, lead: str, mode: Mode) -> tuple[Tokens, Tokens]:
        """(what is compressed, what is fed after it) for a question about a context; `lead` begins the answer."""
        if mode == "aware":
            prompt = self.before + self.tokens(context + SEPARATOR + question)
            return prompt, self.tokens(self.after + lead)
        return self.before + self.tokens(context), self.tokens(SEPARATOR + question + self.after + lead)

    def next(self, question: str, lead: str) -> Tokens:
        """What is fed after an answer for one more question."""
        return self.tokens(self.between + question + self.after + lead)
