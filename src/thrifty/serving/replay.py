"""What-if replay of a request (`thrifty.counterfactual`): what runs before its answer, and what is changed about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.decoding.noise import GumbelNoise
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.counterfactual import Hindsight, observation, replaced
from thrifty.engine.drafting.models import facts_of
from thrifty.engine.request import Request
from thrifty.serving.bodies.chat_messages import checked
from thrifty.serving.bodies.counterfactual import Counterfactual
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.service import Service

FIELD = "thrifty.counterfactual"


@dataclass(frozen=True)
class Replay:
    """How a request is answered. fields: further ones of an engine's Request."""

    sampling: SamplingParameters
    fields: dict[str, Any] = field(default_factory=dict)


async def replay_of(
    service: Service,
    prompt: Sequence[int],
    sampling: SamplingParameters,
    extensions: Extensions,
    samples: int,
    key: str | None,
) -> Replay:
    """The request as its counterfactual has it; as it is where it has none. prompt, sampling: the request's own.

    Reads the observed answer, or draws the factual one as far as the token that is replaced. Raises RequestError for
    what cannot be replayed, and what the engine raises.
    """
    asked = extensions.counterfactual
    if asked is None:
        return Replay(sampling)
    if sampling.seed is None:
        raise RequestError("a counterfactual needs the seed that its factual answer has; give one", param="seed")
    if extensions.session is not None:
        raise RequestError("a session goes on from one answer; leave it or the counterfactual out", param=FIELD)
    if samples > 1 and (asked.replace or asked.hindsight):
        raise RequestError(f"n is {samples}; one answer is replayed at a time", param="n")
    sampling = dataclasses.replace(sampling, noise=GumbelNoise())
    origin = await _origin(service, asked, prompt)
    answer = await _answer(service, asked)
    request = Request(prompt=origin, sampling=sampling)
    if asked.hindsight:
        assert answer is not None, "the body was checked"
        noise = await _hindsight(service, request, answer, extensions, key)
        sampling = dataclasses.replace(sampling, noise=noise)
    if asked.replace is None:
        return Replay(sampling)
    place = asked.replace.place
    if answer is None:
        answer = await _drawn(service, request, place, extensions, key)
    if sampling.max_tokens is None:
        left = service.engine.probe().context - len(prompt)
        sampling = dataclasses.replace(sampling, max_tokens=max(1, left))
    token = await _token(service, asked.replace.token)
    made = replaced(Request(prompt=prompt, sampling=sampling), answer, place, token)
    return Replay(sampling, {"forced": made.forced, "free": made.free})


async def _origin(service: Service, asked: Counterfactual, prompt: Sequence[int]) -> Sequence[int]:
    """Tokens of what the factual answer stood behind."""
    if asked.messages is not None:
        return await service.encode_chat(checked(asked.messages), tools=None, template_arguments=None)
    return prompt if asked.prompt is None else await service.encode(asked.prompt)


async def _answer(service: Service, asked: Counterfactual) -> list[int] | None:
    if not isinstance(asked.answer, str):
        return asked.answer
    return service.model.require_tokenizer().encode(asked.answer, add_bos=False, control=False)


async def _token(service: Service, token: int | str) -> int:
    if isinstance(token, int):
        return token
    ids = service.model.require_tokenizer().encode(token, add_bos=False, control=False)
    if len(ids) != 1:
        raise RequestError(
            f"counterfactual.replace.token is {token!r:.60}, a text of {len(ids)} tokens; give one token",
            param=f"{FIELD}.replace.token",
        )
    return ids[0]


async def _hindsight(
    service: Service, request: Request, answer: Sequence[int], extensions: Extensions, key: str | None
) -> GumbelNoise:
    """Noise that explains an answer, from one reading of it."""
    facts = facts_of(service.model)
    observed = observation(request, answer, facts)
    seen = Hindsight(observed, facts)
    fields = {"forced": observed.forced, "logits": True}
    async with await service.submit(request.ids, observed.sampling, 1, extensions, key, fields) as handle:
        async for event in handle:
            seen.add(event)
    return seen.noise()


async def _drawn(service: Service, request: Request, place: int, extensions: Extensions, key: str | None) -> list[int]:
    """The first tokens of the factual answer. Raises RequestError where it ends before the place."""
    if place == 0:
        return []
    sampling = dataclasses.replace(request.sampling, max_tokens=place, logprobs=None)
    async with await service.submit(request.ids, sampling, 1, extensions, key, {}) as handle:
        tokens = (await handle.result()).token_ids
    if len(tokens) < place:
        raise RequestError(
            f"counterfactual.replace.place is {place}; the factual answer has {len(tokens)} tokens",
            param=f"{FIELD}.replace.place",
        )
    return tokens
