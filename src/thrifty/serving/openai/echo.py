"""A prompt that comes back in front of its answer, with what the model thinks of its tokens: `echo` of completions."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Echo:
    """A prompt to be said again. pieces: of its text, one for each of its tokens; joined they are the text. scores: of
    the tokens behind the first, which has none; None where nobody asked.
    """

    tokens: Sequence[int]
    pieces: Sequence[str]
    scores: Sequence[TokenLogprob] | None

    @property
    def text(self) -> str:
        """The prompt's."""
        return "".join(self.pieces)

    def logprobs(self, tokenizer: Tokenizer) -> dict[str, Any] | None:
        """`choices[].logprobs` of the prompt alone, as OpenAI's text completions have it: the first token has null."""
        if self.scores is None:
            return None
        first = TokenLogprob(self.tokens[0], 0.0)
        told = shown.of_text(tokenizer, [first, *self.scores], 0)
        told["token_logprobs"][0] = told["top_logprobs"][0] = None
        return told | {"text_offset": [0, *accumulate(map(len, self.pieces[:-1]))]}


async def echoes_of(
    service: Service, prompts: Sequence[str | list[int]], encoded: Sequence[list[int]], logprobs: int | None,
    salt: str | None,
) -> list[Echo]:  # fmt: skip
    """Each prompt, scored where `logprobs` says with how many alternatives. salt: answers under it may begin with what
    is read for that; None: none follows. Raises RequestError for a model with an adapter, and what the engine raises.
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
        echoes.append(Echo(tokens, _pieces(tokenizer, given, tokens), scores))
    return echoes


def _pieces(tokenizer: Tokenizer, given: str | list[int], tokens: Sequence[int]) -> list[str]:
    """The text that each token adds to the prompt; of a prompt that was a text, its own words to the letter."""
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
