"""What must come out one way whatever a technique is like: else the setting measures nothing, and there is no verdict.

Every claim's table holds three: tokens evicted at random, all but the first and the newest (must lose), the technique
with the full budget (must hold), and the newest tokens alone (shown). Beside them stands a gate: the technique is
better than random eviction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from thrifty.claims.harness.parts import Part, ahead
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.errors import ThriftyError
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.recovery import Interval

Must = Literal["lose", "hold", "shown"]
SLACK = 0.005  # half a point or 0.005 nats: what rounding may cost a technique that keeps everything
WINDOW = 32  # newest tokens that random eviction keeps, as most techniques do: they are not what a choice is about
WORDS = {"lose": "must lose", "hold": "must hold", "shown": "shown"}


class ControlError(ThriftyError):
    """A control behaved otherwise than it must, so the measurement means nothing."""


@dataclass(frozen=True)
class Control:
    """name: as in "random eviction, keep 0.25". difference: how much better it is than the full cache (negative:
    worse), in points of the score or in nats. must: "lose": worse than the full cache; "hold": not worse; "shown":
    anything.
    """

    name: str
    must: Must
    difference: Interval

    @property
    def contradicts(self) -> bool:
        """Whether it certainly behaves otherwise than it must."""
        if self.must == "lose":
            return self.difference.low > 0
        return self.must == "hold" and self.difference.high < -SLACK

    @property
    def undecided(self) -> bool:
        """Whether it must lose and cannot be told from the full cache: then the setting cannot tell anything."""
        return self.must == "lose" and not self.contradicts and self.difference.high >= 0

    def told(self) -> str:
        """The control in words."""
        low, high = self.difference.low, self.difference.high
        return f"{self.name} ({WORDS[self.must]}) {self.difference.value:+.3f} ({low:+.3f} to {high:+.3f})"


class Scoring(Protocol):
    """A way to score cache tables on the claim's items, such as `partial(context.recall, length=2048)`."""

    def __call__(self, cache: Tables, *, insist: bool = True) -> Scores:
        """insist: refuse a run in which nothing was compressed."""


@dataclass(frozen=True)
class Controlled:
    """controls: for `Measurement.controls`. gate: for `Measurement.gates`."""

    controls: tuple[Control, ...]
    gate: Part


def controlled(
    score: Scoring,
    full: Scores,
    ours: Scores,
    *,
    length: int,
    keep: float | None = None,
    capacity: int | None = None,
    whole: Tables | None = None,
) -> Controlled:
    """The controls on the claim's own items. full, ours: the scores of the full cache and of the technique. length: of
    the prompts, in tokens. keep, capacity: the budget, one of them; for what quantises, the share of its bytes. whole:
    the technique's tables with the full budget; None for what has no budget.
    """
    if (keep is None) == (capacity is None):
        raise ValueError(f"keep = {keep}, capacity = {capacity}: a control has one budget, give one of them")
    slots = max(1, math.floor((keep or 0) * length)) if capacity is None else capacity
    budget: dict[str, Any] = {"keep": keep} if capacity is None else {"capacity": capacity}
    said = ", ".join(f"{name} {value:g}" for name, value in budget.items())
    random = score([{"technique": "random-eviction", **budget, "window": WINDOW}])
    newest = score([{"technique": "streaming", "sinks": 0, "window": slots}], insist=False)
    controls = [
        Control(f"random eviction, {said}", "lose", advantage(random, full)),
        Control(f"the newest {slots} alone", "shown", advantage(newest, full)),
    ]
    if whole is not None:
        controls.append(Control("the full budget", "hold", advantage(score(whole, insist=False), full)))
    return Controlled(tuple(controls), ahead("ahead of random eviction", ours, random))


def check(controls: Sequence[Control]) -> None:
    """Raise ControlError where one contradicts what it must do."""
    wrong = [control.told() for control in controls if control.contradicts]
    if wrong:
        raise ControlError(
            f"a control behaves otherwise than it must: {'; '.join(wrong)} against the full cache. The setting "
            "measures nothing, so there is no verdict: look at the task, its items and the engine first"
        )
