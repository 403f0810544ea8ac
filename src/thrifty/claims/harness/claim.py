"""What a claim is: a paper's figure, how it is measured here, and a rule that turns figures into a verdict."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context

Figures = dict[str, float]


class Verdict(enum.Enum):
    """What the figures say of the claim. UNTESTABLE is for hardware that is missing, never for a claim that fails."""

    HOLDS = "holds"
    PARTLY = "partly"
    FAILS = "does not hold here"
    UNTESTABLE = "not testable"


@dataclass(frozen=True)
class ClaimOutcome:
    """A claim that was measured. measured, setting: sentences with figures. figures: what the verdict was made of."""

    measured: str
    setting: str
    verdict: Verdict
    figures: Mapping[str, float]


class Claim(ABC):
    """The claim of the technique that its module is named after.

    paper: what the paper says, with its setting. source: where it says so. rule: the verdict's rule in words, which
    `judge` carries out. minutes: about how long it takes on two quiet cores. model: what it is measured with unless the
    user names another: one that can do the task uncompressed.
    """

    paper: ClassVar[str]
    source: ClassVar[str]
    rule: ClassVar[str]
    minutes: ClassVar[float]
    model: ClassVar[str] = "smollm2-135m"

    @abstractmethod
    def measure(self, context: Context) -> Figures:
        """The figures, measured with the context's model. Raises what the engine raises."""

    @abstractmethod
    def judge(self, figures: Figures) -> Verdict:
        """The verdict that the rule gives. Nothing but the figures decides."""

    @abstractmethod
    def tell(self, figures: Figures) -> str:
        """What was measured, as one sentence with the figures."""

    @abstractmethod
    def setting(self, figures: Figures) -> str:
        """At which lengths and options, and how that differs from the paper's."""

    def run(self, context: Context) -> ClaimOutcome:
        """Measure and judge."""
        figures = self.measure(context)
        setting = f"{context.name}: {self.setting(figures)}"
        return ClaimOutcome(self.tell(figures), setting, self.judge(figures), figures)


def combined(*parts: bool) -> Verdict:
    """A claim of several parts: all of them hold, some do, or none does."""
    if all(parts):
        return Verdict.HOLDS
    return Verdict.PARTLY if any(parts) else Verdict.FAILS
