"""Words for the model in the middle of a sequence: an instruction that ends the user's turn and begins the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.cache.model_info import Instruct

MARK = "USERTEXTMARK"
PLAIN = "\n\nAnswer: "


def instruction(tokenizer: Any) -> Instruct:
    """How a model is told something: (text, quoted token ids) → token ids of the text, the quotation, and what the chat
    template puts between the user's words and the answer (a plain line where there is no template).

    Nothing is encoded before the first call; texts and ending are encoded once. Raises TemplateError where the
    template fails.
    """
    held: dict[str | None, tuple[int, ...]] = {}

    def encoded(text: str | None) -> tuple[int, ...]:
        if text not in held:
            held[text] = tuple(tokenizer.encode(_ending(tokenizer) if text is None else text, add_bos=False))
        return held[text]

    def instruct(text: str, quoted: Sequence[int]) -> tuple[int, ...]:
        return (*encoded(text), *quoted, *encoded(None))

    return instruct


def _ending(tokenizer: Any) -> str:
    """What stands between the user's words and the answer."""
    if not tokenizer.has_chat_template:
        return PLAIN
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": MARK}])
    return text.rpartition(MARK)[2]
