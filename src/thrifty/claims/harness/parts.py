"""A figure with its interval, the bar that it is held against, and what follows: the verdict."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Literal

from thrifty.claims.harness.statistics import Scores, advantage, paired_ratio, power
from thrifty.evaluation.recovery import Interval

Unit = Literal["share", "points", "times", "nats", "plain"]


class Verdict(enum.Enum):
    """What the headline's interval says of the claim. INCONCLUSIVE: it straddles the bar, or nothing may be concluded.
    UNTESTABLE: something is missing that the claim needs; never for one that fails.
    """

    HOLDS = "holds"
    FAILS = "does not hold here"
    INCONCLUSIVE = "inconclusive"
    UNTESTABLE = "not testable"


@dataclass(frozen=True)
class Bar:
    """What an interval is held against. value: in the interval's unit. at_least: False for "at most". strict: a value
    on the bar is on its bad side ("above", "below").
    """

    value: float
    at_least: bool = True
    strict: bool = False

    def verdict(self, estimate: Interval) -> Verdict:
        """HOLDS or FAILS where the whole interval lies on one side of the bar, else INCONCLUSIVE."""
        near, far, value = (estimate.low, estimate.high, self.value)
        if not self.at_least:
            near, far, value = -estimate.high, -estimate.low, -self.value
        if near > value or (near == value and not self.strict):
            return Verdict.HOLDS
        return Verdict.FAILS if far < value or (far == value and self.strict) else Verdict.INCONCLUSIVE

    @property
    def sign(self) -> str:
        """≥, >, ≤ or <."""
        return (">" if self.strict else "≥") if self.at_least else ("<" if self.strict else "≤")


@dataclass(frozen=True)
class Part:
    """One figure. name: what it is, as in "recall of the full cache's". estimate: None where it could not be measured.
    bar: None for what is shown and judged by nobody. paper: the paper's figure. void: why it decides nothing (a timing
    that others disturbed). missing: what it needs and is not there. unit: how it is written.
    """

    name: str
    estimate: Interval | None = None
    bar: Bar | None = None
    paper: str = ""
    void: str = ""
    missing: str = ""
    unit: Unit = "share"

    def __post_init__(self) -> None:
        if self.estimate is None and not self.missing:
            raise ValueError(f"part '{self.name}' has neither an estimate nor a reason why it is missing")
        if self.estimate is not None and not all(math.isfinite(value) for value in self.estimate.as_dict().values()):
            raise ValueError(f"part '{self.name}' is {self.estimate}: an interval has finite ends")

    def verdict(self) -> Verdict | None:
        """What this part says by itself; None without a bar."""
        if self.missing or self.estimate is None:
            return Verdict.UNTESTABLE
        if self.bar is None:
            return None
        return Verdict.INCONCLUSIVE if self.void else self.bar.verdict(self.estimate)

    @property
    def power(self) -> float | None:
        """The difference that this setting can tell, in the part's unit."""
        return None if self.estimate is None else power(self.estimate)

    def told(self) -> str:
        """The part in words with its figures."""
        if self.estimate is None:
            return f"{self.name}: not testable ({self.missing})"
        low, high = (written(value, self.unit) for value in (self.estimate.low, self.estimate.high))
        counted = self.estimate.low == self.estimate.high
        beside = [] if counted else [f"{low} to {high}"]
        beside += [] if self.bar is None else [f"{self.bar.sign} {written(self.bar.value, self.unit)}"]
        text = f"{self.name} {written(self.estimate.value, self.unit)}" + (f" ({'; '.join(beside)})" if beside else "")
        return f"{text}, VOID: {self.void}" if self.void else text


def kept(name: str, ours: Scores, full: Scores, bar: Bar | None, paper: str = "") -> Part:
    """The share of the full cache's score that a technique keeps; missing where the full cache scores nothing."""
    if full.mean <= 0:
        return Part(
            name, bar=bar, paper=paper, missing=f"a model that scores more than 0 of {len(full)} with its full cache"
        )
    return Part(name, paired_ratio(ours, full), bar, paper, void=ours.void or full.void)


def ahead(name: str, ours: Scores, rival: Scores, bar: Bar | None = Bar(0.0, strict=True), paper: str = "") -> Part:
    """How much better than a rival, in points of the score or in nats; by default it must be above 0."""
    unit: Unit = "points" if ours.bounded else "nats"
    return Part(name, advantage(ours, rival), bar, paper, void=ours.void or rival.void, unit=unit)


def times(name: str, ours: Scores, baseline: Scores, bar: Bar | None, paper: str = "") -> Part:
    """Ours over the baseline's, such as rates of decoding; `void` where a timing was disturbed."""
    return Part(name, paired_ratio(ours, baseline), bar, paper, void=ours.void or baseline.void, unit="times")


def exactly(name: str, value: float, bar: Bar | None, unit: Unit = "share", paper: str = "") -> Part:
    """A figure that is counted and has no spread, such as bytes."""
    return Part(name, Interval(value, value, value), bar, paper, unit=unit)


def written(value: float, unit: Unit) -> str:
    """A figure as the page has it."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "points":
        return f"{100 * value:+.1f}"
    return f"{value:.2f} ×" if unit == "times" else (f"{value:+.4f}" if unit == "nats" else f"{value:.4g}")
