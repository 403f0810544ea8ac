"""KVzip's context-independent scores of heads: what each attends to at most while the model repeats two sample texts.

arXiv:2505.23416, §3.4: one score a head, measured once a model, the greatest over a text in prose and one in code. The
authors' texts are books and code of up to 88 thousand tokens; these are what fits `tokens`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.policies.kvzip import Kvzip
from thrifty.errors import PromptError
from thrifty.evaluation.heads.haystack import prose
from thrifty.evaluation.tasks._framing import Frame

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView
    from thrifty.engine.engine import Engine


def code() -> str:
    """Python code: a module of the standard library that changes little."""
    return inspect.getsource(textwrap)


SAMPLES: Mapping[str, Callable[[], str]] = {"prose": prose, "code": code}


@dataclass(frozen=True, kw_only=True)
class Repeating(Kvzip):
    """KVzip that hands its scores to `listen(by global layer and KV head fp32 [slots])` and keeps everything."""

    listen: Callable[[Sequence[Sequence[Floats]]], None]

    def after_prompt(self, layers: list[LayerView], scores: list[list[Floats]]) -> Edits:
        """Tell, and keep everything."""
        self.listen(scores)
        return Edits()


def head_maxima(engine: Engine, tokens: int, step: Callable[[], None] = lambda: None) -> Floats:
    """[global layers, most heads]: the greatest attention that a KV head gives to any token of either sample, told of
    each of its query heads. tokens: of a sample, the chat template included. step: called after each sample.

    Raises PromptError where the context has no room to repeat so much, BudgetError where memory has none.
    """
    info = engine.probe().cache_model
    maxima = np.zeros((len(info.policy_layers), info.most_heads), np.float32)

    def listen(scores: Sequence[Sequence[Floats]]) -> None:
        for rank, (layer, heads) in enumerate(zip(info.policy_layers, scores, strict=True)):
            best = [float(own[np.isfinite(own)].max(initial=0.0)) for own in heads]
            spread = np.repeat(np.array(best, np.float32), info.of(layer).group)
            maxima[rank, : len(spread)] = np.maximum(maxima[rank, : len(spread)], spread)

    for text in SAMPLES.values():
        engine.watch_prompt(_sample(engine, text(), tokens), _policy(engine, listen), scored=1)
        step()
    return maxima


def _policy(engine: Engine, listen: Callable[[Sequence[Sequence[Floats]]], None]) -> Repeating:
    opening = len(Frame.of(engine.model.require_tokenizer()).before)
    return Repeating(listen=listen, sinks=max(opening, Kvzip.sinks))


def _sample(engine: Engine, text: str, tokens: int) -> tuple[int, ...]:
    """A text inside the user's turn, cut to `tokens` tokens."""
    tokenizer = engine.model.require_tokenizer()
    before = Frame.of(tokenizer).before
    if tokens <= len(before):
        raise PromptError(f"sample = {tokens} tokens do not hold the chat template; use more than {len(before)}")
    return (*before, *tokenizer.encode(text, add_bos=False))[:tokens]
