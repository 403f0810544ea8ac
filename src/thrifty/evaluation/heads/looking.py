"""One question of a head probe, run with its answer in one prefill while a policy looks and changes nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import window_attention
from thrifty.cache.statistics import Statistics, Stats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.heads.items import ProbeItem, ProbeQuestion
from thrifty.evaluation.heads.rules import Rule

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView
    from thrifty.engine.engine import Engine

LONGEST = 24
"""Tokens of a free answer."""
LEAST_F1 = 0.5
"""A free answer counts above this F1 of its words with the right ones, as in the official code."""


@dataclass(frozen=True, kw_only=True)
class Watching(CachePolicy):
    """Hands the attention of the prompt's last `rows` queries to `listen(layer, KV head, [group, rows, slots])`."""

    rows: int
    listen: Callable[[int, int, Floats], None]

    name = "watching"

    def wants(self, model: ModelInfo) -> Statistics:
        """The last `rows` queries."""
        return Statistics(queries=self.rows)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Look, and keep everything."""
        if stats.queries is not None:
            for head in range(kv.kv_heads):
                self.listen(layer.index, head, window_attention(kv, head, stats.queries))
        return Edits()


def look(engine: Engine, item: ProbeItem, rule: Rule) -> Floats | None:
    """What each query head of the global layers earns with one question, [layers, most heads of a layer]; None where
    the model would answer something else.
    """
    info = engine.probe().cache_model
    ranks = info.policy_layers
    earned = np.zeros((len(ranks), info.most_heads), np.float32)

    def listen(layer: int, head: int, probabilities: Floats) -> None:
        size = info.of(layer).group
        earned[ranks.index(layer), head * size : (head + 1) * size] = rule(item, probabilities[:, : item.answer])

    # The row before an answer's token is the one that says it.
    first_choices = said(engine, item, Watching(rows=item.answer + 1, listen=listen))
    return earned if first_choices == item.tokens[-item.answer :] else None


def said(engine: Engine, item: ProbeItem, policy: CachePolicy) -> tuple[int, ...]:
    """The model's first choices in place of an item's answer, while a policy looks at its prefill."""
    # The last row says what comes after the answer.
    return tuple(engine.watch_prompt(item.tokens, policy, scored=item.answer + 1)[:-1])


@dataclass(frozen=True)
class Answered:
    """What a model made of a question. item: with its right answer, None where it gave none; misled: whether it gave
    the wrong one instead."""

    item: ProbeItem | None
    misled: bool = False


def answered(engine: Engine, question: ProbeQuestion) -> Answered:
    """A question with its answer: the expected one behind a lead, else the model's own words."""
    if question.lead:
        return Answered(question.answered(question.expected))
    tokenizer = engine.model.require_tokenizer()
    tokens = first_line(tokenizer, free_answer(engine, question.prompt))
    text = tokenizer.decode(tokens)
    if tokens and right(text, question.right, question.wrong):
        return Answered(question.answered(tokens))
    return Answered(None, misled=right(text, question.wrong, question.right))


def free_answer(engine: Engine, prompt: Sequence[int]) -> list[int]:
    """The model's greedy answer with the full cache, its end token left out."""
    request = Request(
        prompt=list(prompt), cache=[], sampling=SamplingParameters(max_tokens=LONGEST), share_prefix=False
    )
    ends = set(engine.model.require_tokenizer().eos_ids)
    return [token for token in engine.submit(request).result().token_ids if token not in ends]


def first_line(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """The tokens up to the first line break in their text."""
    for count in range(1, len(tokens) + 1):
        if "\n" in tokenizer.decode(tokens[:count]).lstrip():
            return list(tokens[: count - 1])
    return list(tokens)


def right(text: str, answer: str, wrong: str = "") -> bool:
    """Whether a text gives the right answer: F1 of its words above one half, and not all words of the wrong one."""
    words, wanted, other = _words(text), _words(answer), _words(wrong)
    common = sum((Counter(words) & Counter(wanted)).values())
    f1 = 2 * common / (len(words) + len(wanted))
    return f1 > LEAST_F1 and not (other and set(other) <= set(words))


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word not in ("a", "an", "the")]
