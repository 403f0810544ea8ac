"""What a claim is: a paper's figure, how it is measured here, and intervals that are held against it.

A claim is a file named after its technique, about 50 lines (its imports: `harness.claim`, `.parts`, `.controls`,
`.context`):

    TABLE = {"technique": "snapkv", "keep": 0.25}
    LENGTH = 1024

    class SnapkvClaim(Claim):
        paper = "16K tokens, 1024 kept: keys are still recalled; decodes 3.6 × as fast"
        source = "arXiv:2404.14469, abstract and section 5"
        rule = "recall with a quarter kept is at least 95 % of the full cache's"
        models = ("smollm2-135m", "qwen2.5-coder-0.5b")
        minutes = 1.5

        def measure(self, context: Context) -> Measurement:
            recall = partial(context.recall, length=LENGTH)
            full, ours, rival = recall([]), recall([TABLE]), recall([H2O])
            fast, slow = context.speed([TABLE], length=8192)
            tested = controlled(recall, full, ours, keep=0.25, length=LENGTH, whole=[TABLE | {"keep": 1.0}])
            return Measurement(
                headline=kept("recall of the full cache's", ours, full, Bar(0.95)),
                parts=(ahead("ahead of H2O", ours, rival), times("decodes faster", fast, slow, Bar(3.6), "3.6 ×")),
                gates=(tested.gate, context.promise([TABLE], 0.25)),
                controls=tested.controls,
                counts={"keys": len(ours), "contexts": ours.contexts},
                setting="a quarter kept, question last; the paper: 1024 of 16384",
            )

The budget says how much there is time for (`context.recall` and the like count by it): a claim never counts items
itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Part, Verdict

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context


@dataclass(frozen=True)
class Measurement:
    """What a claim measured. The headline decides; parts are shown with their own verdicts and never lift it.

    gates: what a verdict needs beside the headline: bytes as promised, better than random eviction. One that fails,
    fails the claim; one that is open leaves nothing better than "inconclusive". controls: what must lose or hold
    whatever the technique is like (see `controls`). counts: of items, contexts, tokens. setting: lengths, options, what
    differs from the paper. told: a sentence beside the figures, where they do not say it all.
    """

    headline: Part
    parts: tuple[Part, ...] = ()
    gates: tuple[Part, ...] = ()
    controls: tuple[Control, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    setting: str = ""
    told: str = ""

    def __post_init__(self) -> None:
        if self.headline.bar is None and not self.headline.missing:
            raise ValueError(f"the headline '{self.headline.name}' has no bar, so nothing would decide")

    def verdict(self) -> Verdict:
        """By the headline, the gates and whether the controls could tell anything. Controls that contradict are the
        harness's business: then there is no verdict.
        """
        verdict = self.headline.verdict()
        assert verdict is not None, "a headline has a bar or is missing"
        gates = [gate.verdict() for gate in self.gates]
        if verdict is Verdict.UNTESTABLE:
            return verdict
        if verdict is Verdict.FAILS or Verdict.FAILS in gates:
            return Verdict.FAILS
        open_gate = any(gate in (Verdict.INCONCLUSIVE, Verdict.UNTESTABLE) for gate in gates)
        undecided = any(control.undecided for control in self.controls)
        return Verdict.INCONCLUSIVE if open_gate or undecided else verdict

    @classmethod
    def untestable(cls, name: str, missing: str, setting: str = "") -> Measurement:
        """A claim that cannot be measured. missing: what it would take."""
        return cls(headline=Part(name, missing=missing), setting=setting)


class Claim(ABC):
    """The claim of the technique that its module is named after.

    paper: what the paper says, with its setting. source: where it says so, and whether that was read. rule: the
    headline's rule in words. models: what it is measured with, the first at every budget, all at the largest; each can
    do the task uncompressed. minutes: about how long the first takes on two quiet cores at the smallest budget.
    """

    paper: ClassVar[str]
    source: ClassVar[str]
    rule: ClassVar[str]
    minutes: ClassVar[float]
    models: ClassVar[tuple[str, ...]] = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")

    @abstractmethod
    def measure(self, context: Context) -> Measurement:
        """Measure with the context's model, at its budget. Raises what the engine raises."""
