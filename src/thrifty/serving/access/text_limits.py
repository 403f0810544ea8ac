"""Texts that are far beyond the context, refused by their beginning: nobody pays for the tokens of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.serving.errors import RequestError

CHARACTERS = 8  # of a token: a text of so many for each token of the context is encoded without a look before
GROWTH = 4
SLACK = 64  # tokens: where a text is cut, its tokens may be others


def chat_texts(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """What a chat template writes of messages and of its other arguments, such as tools: each that is no text, as JSON
    without spaces.
    """
    written = [value for message in messages for name in ("content", "tool_calls") if (value := message.get(name))]
    written += [value for value in options.values() if value]
    return [value if isinstance(value, str) else _json(value) for value in written]


def check_text(text: str, context: int, encode: Callable[[str], list[int]]) -> None:
    """Raise RequestError where the beginning of a text alone has more tokens than the context.

    Encoding takes some hundred bytes of memory for each character, and a second for some hundred thousand: so a long
    text is tried from its beginning, in pieces that grow, and what is refused costs as much as what fits.
    """
    size = CHARACTERS * context
    while size < len(text):
        tokens = len(encode(text[:size]))
        if tokens > context + SLACK:
            raise RequestError(
                f"the first {size} of the prompt's {len(text)} characters have {tokens} tokens; the context holds "
                f"{context}, the answer included",
                code="context_length_exceeded",
            )
        size *= GROWTH


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return ""  # a template refuses what is nested so deeply
