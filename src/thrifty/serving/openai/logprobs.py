"""Log-probabilities as OpenAI's chat and text completions have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.decoding.sampling import TokenLogprob

if TYPE_CHECKING:
    from thrifty.models.tokens.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity


def of_chat(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`: a token, its bytes and its alternatives each."""
    return [
        _entry(tokenizer, entry.token, entry.logprob)
        | {"top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in entry.top]}
        for entry in entries
    ]


def of_text(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of text completions. offset: of the first token's text in the answer, in characters."""
    tokens = [_text(tokenizer, entry.token) for entry in entries]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_top(tokenizer, entry) for entry in entries],
        "text_offset": offsets,
    }


def _top(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """The alternatives by their texts, and the token itself where it is none of them: as OpenAI tells them."""
    told = {_text(tokenizer, token): _finite(logprob) for token, logprob in entry.top}
    told.setdefault(_text(tokenizer, entry.token), _finite(entry.logprob))
    return told


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    text = _text(tokenizer, token)
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
