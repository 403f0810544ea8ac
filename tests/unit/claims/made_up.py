"""A context whose scores are made up, so that a claim's judgement can be looked at without a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from thrifty.claims.harness.budget import Budget
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.forcing import MeasurementError, Tables

Level = float | tuple[float, float]
"""Of answers, the share that is right: of all, or of first and later turns. Of losses, nats above the full cache's."""
Levels = Sequence[tuple[Mapping[str, Any], Level]]
"""What a technique's table must hold, and its level; the first that fits counts."""

MANY = Budget("made up", None, items=240, tokens=2048, answers=120, rounds=4, models=1, factor=1.0)
TURNS = ("requests", "questions", "turns")
PASSAGES, TOKENS = 16, 128
LOSS = 3.0  # nats a token of the full cache


class MadeUp(Context):
    """answers, losses: levels by table. full: share of right answers with the full cache. bytes_of: share of the full
    cache's bytes by table. rates: of decoding, ours and the full cache's. peak: the full cache's of ours. unscored: why
    heads cannot be scored. void: why timings decide nothing.
    """

    def __init__(
        self,
        answers: Levels = (),
        losses: Levels = (),
        *,
        full: Level = 0.9,
        loss: float = LOSS,
        held: Levels = (),
        rates: tuple[float, float] = (1.0, 1.0),
        peak: float = 1.0,
        unscored: str = "",
        void: str = "",
        budget: Budget = MANY,
    ) -> None:
        tokenizer = SimpleNamespace(has_chat_template=True)
        config = SimpleNamespace(context_length=32768)
        model = SimpleNamespace(config=config, require_tokenizer=lambda: tokenizer, nbytes=10**8)
        super().__init__(model, "made up", budget=budget)  # type: ignore[arg-type]
        self.levels, self.loss_levels, self.shares = answers, losses, held
        self.full, self.loss = full, loss
        self.rates, self.smaller, self.unscored, self.void = rates, peak, unscored, void

    def task(
        self, text: str, cache: Tables, *, items: int | None = None, insist: bool = True, **options: Any
    ) -> Scores:
        """Right answers as the levels have it: the same items are easy for all techniques."""
        count = self.budget.answers if items is None else items
        turns = next((int(options[name]) for name in TURNS if name in options), 1)
        level = _level(cache, self.levels, self.full, {"random-eviction": 0.1, "streaming": 0.3})
        first, later = level if isinstance(level, tuple) else (level, level)
        ranks = _seeded(text).permutation(count)
        values = [float(rank < round((later if turn else first) * count)) for rank in ranks for turn in range(turns)]
        clusters = [f"{text} {place}" for place in range(count) for _ in range(turns)]
        return Scores(tuple(values), tuple(clusters))

    def losses(self, cache: Tables, *, prefix: int = 1024, measure: str = "nll", insist: bool = True) -> Scores:
        """Losses that differ from passage to passage, and from technique to technique by their level and a little."""
        level = _level(cache, self.loss_levels, 0.0, {"random-eviction": 1.0, "streaming": 0.5})
        assert isinstance(level, float)
        passages = np.repeat(_seeded("passages").normal(0, 0.3, PASSAGES), TOKENS)
        apart = _seeded(str(cache)).normal(0, 0.002 if cache else 0, PASSAGES * TOKENS)
        values = self.loss + passages + apart - apart.mean() - passages.mean() + level
        clusters = [f"passage {place}" for place in range(PASSAGES) for _ in range(TOKENS)]
        return Scores(tuple(values.tolist()), tuple(clusters), higher=False, bounded=False)

    def speed(self, cache: Tables, baseline: Tables = (), *, length: int, steps: int = 48) -> tuple[Scores, Scores]:
        """The rates, about the same in every round."""
        ours, theirs = (self._rounds(rate) for rate in self.rates)
        return ours, theirs

    def rounds(self, sides: Mapping[str, Callable[[], float]]) -> dict[str, Scores]:
        """The rates by the sides' order, the baseline first."""
        return {name: self._rounds(rate) for name, rate in zip(sides, reversed(self.rates), strict=True)}

    def held(self, cache: Tables, length: int) -> int:
        """Bytes as the shares have it."""
        level = _level(cache, self.shares, 1.0, {})
        assert isinstance(level, float)
        return round(level * 10**9)

    def peak(self, cache: Tables, length: int, sequences: int) -> int:
        """The full cache's peak is `smaller` times any other."""
        return round(10**9 * (1 if cache else self.smaller))

    def heads(self, kind: str) -> None:
        """Raises where a model that cannot be scored is asked for."""
        if self.unscored:
            raise MeasurementError(self.unscored)

    def _rounds(self, rate: float) -> Scores:
        values = tuple(rate * (1 + 0.001 * (place % 2)) for place in range(self.budget.rounds))
        return Scores(values, tuple(f"round {place}" for place in range(len(values))), bounded=False, void=self.void)


def _level(cache: Tables, levels: Levels, full: Level, controls: Mapping[str, float]) -> Level:
    """The level of cache tables: given ones first, a full budget as the full cache, then the controls'."""
    table = cache[0] if cache else None
    if table is None:
        return full
    if 1.0 in (table.get("keep"), table.get("recovery")) or table.get("bits") == 8:
        return full
    for wanted, level in levels:
        if wanted.items() <= table.items():
            return level
    if table["technique"] in controls:
        return controls[str(table["technique"])]
    raise AssertionError(
        f"the claim asks for {dict(table)}, which is in none of {[dict(wanted) for wanted, _ in levels]}"
    )


def _seeded(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))
