"""Where the user's own text begins in a prompt: behind what the chat template says first, a system prompt among it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.cache.model_info import Opening

USER, ANSWER, NEXT = "USERTEXTMARK", "ANSWERTEXTMARK", "NEXTTEXTMARK"


def opening(tokenizer: Any) -> Opening:
    """(token ids of a prompt) → how many of its first tokens stand before the text of its first user turn; 0 where the
    prompt does not begin as the chat template does.

    Nothing is rendered before the first call. Raises TemplateError where the template fails.
    """
    held: list[Template] = []

    def length(prompt: Sequence[int]) -> int:
        if not held:
            held.append(Template(tokenizer))
        return held[0].opening(prompt)

    return length


class Template:
    """The beginnings of turns, as token ids. before: all that stands in front of a conversation's first text, where the
    user brings no system prompt. head: what opens a turn of the user, with a control token in it; empty without one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.before: tuple[int, ...] = ()
        self.head: tuple[int, ...] = ()
        self._special: Collection[int] = ()
        if not tokenizer.has_chat_template:
            return
        first = tokenizer.apply_chat_template([{"role": "user", "content": USER}]).partition(USER)[0]
        turns = [("user", USER), ("assistant", ANSWER), ("user", NEXT)]
        text = tokenizer.apply_chat_template([{"role": role, "content": content} for role, content in turns])
        between = text.partition(ANSWER)[2].partition(NEXT)[0]
        self.before = tuple(tokenizer.encode(first))
        head = tuple(tokenizer.encode(_common_end(first, between), add_bos=False))
        self._special = tokenizer.special_ids
        self.head = head if any(token in self._special for token in head) else ()

    @property
    def shortened(self) -> tuple[int, ...]:
        """The head without its last token, where that leaves a control token in it."""
        return self.head[:-1] if any(token in self._special for token in self.head[:-1]) else ()

    def opening(self, prompt: Sequence[int]) -> int:
        """See `opening`."""
        if self.before and tuple(prompt[: len(self.before)]) == self.before:
            return len(self.before)
        end = _end(prompt, self.head)
        # A text that begins with a line break may take the head's last token into its own first one.
        return end or _end(prompt, self.shortened)


def _common_end(left: str, right: str) -> str:
    """The longest text that both end with."""
    count = 0
    while count < min(len(left), len(right)) and left[-1 - count] == right[-1 - count]:
        count += 1
    return left[len(left) - count :]


def _end(prompt: Sequence[int], part: Sequence[int]) -> int:
    """Where the first occurrence of `part` ends in a prompt, 0 where there is none."""
    wanted = tuple(part)
    for start in range(len(prompt) - len(wanted) + 1 if wanted else 0):
        if prompt[start] == wanted[0] and tuple(prompt[start : start + len(wanted)]) == wanted:
            return start + len(wanted)
    return 0
