"""How tokens are chosen and when to stop, as callers give it: checked once, where it comes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.noise import GumbelNoise, as_noise
from thrifty.decoding.option_values import as_integer, biases, flag, number, shown, texts, token_ids, whole
from thrifty.errors import PromptError, nearest

MAXIMUM_LOGPROBS = 20


class AtMost(int):
    """A bound on an answer's tokens that nobody asked for: it shrinks to the room there is."""


DEFAULT_MAX_TOKENS = AtMost(256)


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How tokens are chosen and when to stop.

    Order: repetition, presence and frequency penalties and the logit bias, then temperature, top_k,
    top_p, min_p. temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: probabilities; 1 and 0 are off.
    repetition_penalty (Keskar et al. 2019, §4.1): over prompt and answer, 1 is off. presence_penalty and
    frequency_penalty: subtracted once, or once an occurrence, for tokens of the answer; 0 is off.
    logit_bias: token id to an addition in logit units. seed: None draws one.
    max_tokens: None is as many as the context and the budget have room for, a number must fit; the default is 256,
    or what fits where that is less.
    stop: strings that end the answer (they are not part of the text), one or several. stop_token_ids: likewise for
    ids. Numbers may be NumPy's or torch's; None is no bias and no stop.
    ignore_eos: go on after the model's end-of-sequence ids. logprobs: None for none, or how many
    alternatives to report beside the chosen token's log-probability (0 to 20), in natural log of the
    model's own distribution (before penalties, temperature and the grammar).
    noise: what a token above temperature 0 is drawn with. None: one number a token. "gumbel": a number for each place
    in the answer and each token, the same in every request of this seed, whatever its prompt, model or recipe: where
    the logits differ little, the answers do (see `engine.counterfactual`; a GumbelNoise may hold an observed text).
    grammar: what the whole answer must look like, None for anything. An answer that `max_tokens` or a stop string cuts
    is the beginning of such a text.

    Raises PromptError naming the field, the value and the accepted range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    noise: GumbelNoise | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "temperature": number("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or more"),
            "top_k": whole("top_k", self.top_k, 0, "0 (off) or more"),
            "top_p": number("top_p", self.top_p, 0.0, 1.0, "above 0, at most 1", above=True),
            "min_p": number("min_p", self.min_p, 0.0, 1.0, "0 (off) to 1"),
            "repetition_penalty": number(
                "repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0; 1 is off", above=True
            ),
            "presence_penalty": number(
                "presence_penalty", self.presence_penalty, -math.inf, math.inf, "a finite number"
            ),
            "frequency_penalty": number(
                "frequency_penalty", self.frequency_penalty, -math.inf, math.inf, "a finite number"
            ),
            "logit_bias": biases("logit_bias", self.logit_bias),
            "stop": texts("stop", self.stop),
            "stop_token_ids": _stop_token_ids(self.stop_token_ids),
            "ignore_eos": flag("ignore_eos", self.ignore_eos),
            "noise": as_noise(self.noise),
        }
        if self.seed is not None:
            values["seed"] = whole("seed", self.seed, 0, "a whole number of at least 0, or None")
        if self.max_tokens is not None and not isinstance(self.max_tokens, AtMost):
            values["max_tokens"] = whole("max_tokens", self.max_tokens, 1, "1 or more, or None for as many as fit")
        if self.logprobs is not None:
            values["logprobs"] = whole(
                "logprobs", self.logprobs, 0, f"0 to {MAXIMUM_LOGPROBS}, or None", MAXIMUM_LOGPROBS
            )
        if self.grammar is not None:
            _check_grammar(self.grammar, values["ignore_eos"])
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, **options: Any) -> SamplingParameters:
        """Like the constructor, with a nearest-name error for an unknown option. `greedy=True` is
        temperature 0.
        """
        known = [item.name for item in fields(cls)]
        if flag("greedy", options.pop("greedy", False)):
            if options.get("temperature"):
                raise PromptError(f"greedy=True contradicts temperature = {options['temperature']!r}; give one")
            options["temperature"] = 0.0
        for name in options:
            if name not in known:
                raise PromptError(f"unknown sampling option '{name}'. {nearest(name, [*known, 'greedy'])}")
        return cls(**options)

    @property
    def greedy(self) -> bool:
        """True where the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def plain_greedy(self) -> bool:
        """True where the model's own arg-max is the answer and nothing else of the logits is needed."""
        own = self.penalised or self.logit_bias or self.logprobs is not None or self.grammar is not None
        return self.greedy and not own

    @property
    def penalised(self) -> bool:
        """True where earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check_grammar(grammar: Any, ignore_eos: bool) -> None:
    if not isinstance(grammar, Grammar):
        raise PromptError(f"grammar = {shown(grammar)}; use Grammar.json_schema(...) or another of its class methods")
    if ignore_eos:
        raise PromptError("ignore_eos = True goes on where the grammar has ended; leave one of the two out")


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    """Token ids from a collection of them, one of them, or None."""
    if value is None:
        return ()
    alone = as_integer(value)
    if alone is not None:
        value = (alone,)
    elif isinstance(value, set | frozenset):
        value = tuple(value)
    ids = token_ids("stop_token_ids", value)
    for token in ids:
        whole("stop_token_ids", token, 0, "token ids of at least 0")
    return ids
