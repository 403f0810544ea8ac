"""A prompt that comes back in front of its answer, with what the model thinks of its tokens: `echo` of completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from thrifty.decoding.sampling import TokenLogprob
from thrifty.serving.errors import RequestError
from thrifty.serving.openai import logprobs as shown
from thrifty.serving.service import Service

if TYPE_CHECKING:
    from thrifty.models.tokens.tokenizer import Tokenizer

MOST_LOGPROBS = 1_000_000
"""Log-probabilities of prompts in one answer: each takes some hundred bytes of memory until the answer is sent."""


@dataclass(frozen=True)
class Echo:
    """A prompt to be said again. logprobs: `choices[].logprobs` of it alone, as OpenAI's text completions have it: the
    first token has null; None where nobody asked.
    """

    tokens: Sequence[int]
    text: str
    logprobs: dict[str, Any] | None


def check_size(encoded: Sequence[Sequence[int]], logprobs: int | None, samples: int) -> None:
    """Raise RequestError where an answer would hold too many log-probabilities of its prompts. samples: to each."""
    tokens = sum(map(len, encoded))
    count = 0 if logprobs is None else samples * tokens * (1 + logprobs)
    if count > MOST_LOGPROBS:
        raise RequestError(
            f"the answer would hold {count} log-probabilities of prompts (tokens: {tokens}, logprobs: {logprobs}, n: "
            f"{samples}); it may hold {MOST_LOGPROBS}: give fewer prompts, or a smaller logprobs or n",
            param="logprobs",
        )


async def echoes_of(
    service: Service, prompts: Sequence[str | list[int]], encoded: Sequence[list[int]], logprobs: int | None,
    salt: str | None,
) -> list[Echo]:  # fmt: skip
    """Each prompt, scored where `logprobs` says with how many alternatives. salt: answers under it may begin with what
    is read for that; None: none follows. Raises RequestError for a model with an adapter, and what the engine raises.

    Texts of tokens are put together in a thread: of a long prompt that takes a second, in which others' answers go on.
    """
    if logprobs is not None and service.adapter is not None:
        raise RequestError(
            f"prompts are scored by the model itself; ask '{service.served.name}' instead of '{service.name}', or "
            "leave logprobs or echo out",
            param="echo",
        )
    tokenizer = service.model.require_tokenizer()
    echoes = []
    for given, tokens in zip(prompts, encoded, strict=True):
        scores = None if logprobs is None else await service.engine.prompt_logprobs(tokens, logprobs, salt)
        echoes.append(await asyncio.to_thread(_echo, tokenizer, given, tokens, scores))
    return echoes


def _echo(
    tokenizer: Tokenizer, given: str | list[int], tokens: Sequence[int], scores: Sequence[TokenLogprob] | None
) -> Echo:
    """scores: of the tokens behind the first, which has none; None where nobody asked."""
    pieces = _pieces(tokenizer, given, tokens)
    if scores is None:
        return Echo(tokens, "".join(pieces), None)
    told = shown.of_text(tokenizer, [TokenLogprob(tokens[0], 0.0), *scores], 0)
    told["token_logprobs"][0] = told["top_logprobs"][0] = None
    offsets = [0, *accumulate(map(len, pieces[:-1]))]
    return Echo(tokens, "".join(pieces), told | {"text_offset": offsets})


def _pieces(tokenizer: Tokenizer, given: str | list[int], tokens: Sequence[int]) -> list[str]:
    """The text that each token adds to the prompt; of a prompt that was a text, its own words to the letter. Joined
    they are the text.
    """
    stream = tokenizer.stream(skip_special=False)
    pieces = [stream.push(token) for token in tokens]
    pieces[-1] += stream.flush()
    if isinstance(given, str) and "".join(pieces) != given:
        return _fitted(pieces, given)
    return pieces


def _fitted(pieces: Sequence[str], given: str) -> list[str]:
    """The same cuts of a text that its tokens spell otherwise: a token in front that the text lacks (a beginning of
    sequence) is empty, a space that a tokenizer added too; what is left belongs to the last token.
    """
    fitted, place = [], 0
    for piece in pieces:
        own = next((text for text in (piece, piece.lstrip()) if text and given.startswith(text, place)), "")
        fitted.append(own)
        place += len(own)
    fitted[-1] += given[place:]
    return fitted


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """The log-probabilities of a prompt and of the answer behind it as one; None where there are none."""
    if first is None or second is None:
        return first or second
    return {name: [*first[name], *second[name]] for name in first}
