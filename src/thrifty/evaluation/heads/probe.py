"""Which heads look things up: importance scores of attention heads, measured on the model itself.

Every question is run with its answer in one prefill, layer by layer, with a policy that watches and changes nothing. A
question counts where each token of the answer is the model's own first choice, so the run is the greedy answer.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import window_attention
from thrifty.cache.statistics import Statistics, Stats
from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads.items import ProbeItem, ProbeItems
from thrifty.models.head_scores import HeadScores, checkpoint_version, find, save

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView
    from thrifty.engine.engine import Engine

Rule = Callable[[ProbeItem, Floats], Floats]
"""(item, probabilities [group, answer tokens, slots]) → what each query head earns, [group]."""


@dataclass(frozen=True)
class ProbeSettings:
    """lengths: of prompts, in tokens. depths: places of the needle, evenly from begin to end. repeats: questions for
    every length and depth.
    """

    lengths: tuple[int, ...] = (256, 480)
    depths: int = 8
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.depths < 1 or self.repeats < 1:
            raise PromptError(
                f"lengths = {list(self.lengths)}, depths = {self.depths}, repeats = {self.repeats}; use 1 or more each"
            )

    @property
    def questions(self) -> int:
        """Questions of one kind."""
        return len(self.lengths) * self.depths * self.repeats


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


def retrieval(item: ProbeItem, probabilities: Floats) -> Floats:
    """1/N for every answer token where the strongest look goes into the needle, to the token that is said (HeadKV-R,
    §3.1; N: tokens of the answer).
    """
    top = probabilities.argmax(axis=-1)
    tokens = np.array(item.tokens)
    hit = (top >= item.needle.start) & (top < item.needle.stop) & (tokens[top] == tokens[-item.answer :])
    return hit.sum(axis=-1, dtype=np.float32) / item.answer


def reasoning(item: ProbeItem, probabilities: Floats) -> Floats:
    """a_i/N for each of the N strongest looks of every answer token that goes to the correct answer (HeadKV-R2, eq. 2;
    N: tokens of the answer).
    """
    strongest = np.argsort(-probabilities, axis=-1, kind="stable")[..., : item.answer]
    inside = (strongest >= item.correct.start) & (strongest < item.correct.stop)
    return (np.take_along_axis(probabilities, strongest, axis=-1) * inside).sum(axis=(-2, -1)) / item.answer


RULES: dict[str, Rule] = {"r": retrieval, "r2": reasoning}


def probe(
    engine: Engine, kind: str, settings: ProbeSettings | None = None, step: Callable[[], None] = lambda: None
) -> HeadScores:
    """Scores of one kind: the mean over the questions that the model answers. step: called after each question.

    Raises MeasurementError where the model answers none of them, or where no head earns
    anything; PromptError for lengths that the model or the questions do not fit.
    """
    settings = settings or ProbeSettings()
    _check(engine, settings)
    model = engine.model
    info = engine.probe().cache_model
    layers = info.policy_layers
    total, used = np.zeros((len(layers), info.most_heads), np.float32), 0
    for item in questions(ProbeItems(model.require_tokenizer()), kind, settings):
        earned = look(engine, item, RULES[kind])
        if earned is not None:
            total += earned
            used += 1
        step()
    if not used or not total.any():
        raise MeasurementError(
            f"the model answers {used} of {settings.questions} questions of the head probe '{kind}' and no head earns "
            "anything: its heads cannot be scored. Use shorter --length, or a larger model."
        )
    rows = tuple(tuple(row) for row in (total / used).tolist())
    return HeadScores(
        kind=kind,
        version=checkpoint_version(model),
        layers=layers,
        scores=rows,
        asked=settings.questions,
        used=used,
        settings=asdict(settings),
        date=datetime.date.today().isoformat(),
    )


def score_once(engine: Engine, kind: str) -> None:
    """Probe and save where the model has no scores of this kind. Raises what `probe` raises."""
    if find(engine.model, kind) is None:
        save(engine.model, probe(engine, kind))


def questions(items: ProbeItems, kind: str, settings: ProbeSettings) -> Iterator[ProbeItem]:
    """Every length × depth × repeat, the same for a seed."""
    for length in settings.lengths:
        for place in range(settings.depths):
            for repeat in range(settings.repeats):
                chance = random.Random(f"{settings.seed} {kind} {length} {place} {repeat}")
                yield items.make(kind, length, place / max(1, settings.depths - 1), chance)


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


def _check(engine: Engine, settings: ProbeSettings) -> None:
    context = engine.model.config.context_length
    if max(settings.lengths) > context:
        raise PromptError(f"length = {max(settings.lengths)} exceeds this model's context; use at most {context}")
    if engine.model.tokenizer is None:
        raise PromptError("the head probe asks questions in words: it needs a checkpoint with a tokenizer")
