"""Texts that are far beyond the context, refused by their beginning: nobody pays for the tokens of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from thrifty.serving.errors import RequestError

CHARACTERS = 8  # of a token: a text of so many for each token of the context is encoded without a look before
GROWTH = 4
SLACK = 64  # tokens: where a text is cut, its tokens may be others


def check_texts(texts: Iterable[str], context: int, encode: Callable[[str], list[int]]) -> None:
    """Raise RequestError where the beginning of a text alone has more tokens than the context.

    Encoding takes some hundred bytes of memory for each character, and a second for some hundred thousand: so a long
    text is tried from its beginning, in pieces that grow, and what is refused costs as much as what fits.
    """
    for text in texts:
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
