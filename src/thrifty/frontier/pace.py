"""How long measurements of a search take: the model's pace, and what rounding weights adds to it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.heads.probe import ProbeSettings
from thrifty.evaluation.measuring.pace import COMPRESSING, Pace, Times, short_run
from thrifty.weights.structure import linears
from thrifty.weights.technique import WeightTechnique

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.frontier.candidates import Candidate
    from thrifty.models.model import Model
    from thrifty.weights.technique import Technique

SAMPLED = 1 << 22  # weights that are rounded to see how long all of them take
LOGIT = 4e-8  # seconds that scoring takes for every logit


@dataclass(frozen=True)
class SearchPace(Pace):
    """weight: seconds that rounding one weight takes."""

    weight: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchPace:
        """What `as_dict` made."""
        return cls(**values)


def measure(engine: Engine, rounding: float) -> SearchPace:
    """The pace of the engine's model, with the full cache. rounding: seconds a weight, see `rounding_seconds`."""
    return SearchPace(**asdict(short_run(engine)), weight=rounding)


def rounding_seconds(model: Model, techniques: Sequence[Technique]) -> float:
    """Seconds a weight that `techniques` take, as some linears of the model tell; 0 without any."""
    count, began = 0, time.perf_counter()
    for technique in techniques:
        if not isinstance(technique, WeightTechnique):
            continue  # its bytes are not predicted, so no search has it
        for linear in linears(model):
            if technique.selects(linear) and not technique.needs_calibration and count < SAMPLED:
                technique.compress(linear, None)
                count += linear.linear.out_features * linear.linear.in_features
    return (time.perf_counter() - began) / count if count else 0.0


@dataclass(frozen=True)
class Forecast(Times):
    """Seconds of what a search does, from a pace. reads: by a candidate's key how many prefills it takes to read a
    prompt (see `reading.prefills`); 1 for what is not there. unscored: kinds of head scores that nobody measured yet.
    """

    pace: SearchPace
    reads: Mapping[str, float] = field(default_factory=dict)
    unscored: frozenset[str] = frozenset()

    def run(self, prompt: int, steps: int, scored: int) -> float:
        """Of one candidate that reads its prompt once: a prompt, tokens after it, and the scores of some."""
        logits = scored * self.sizes.config.vocabulary_size * LOGIT
        return COMPRESSING * (self.prefill(prompt) + steps * self.step(self.held(prompt))) + logits

    def again(self, prompt: int, reads: Sequence[float]) -> float:
        """What candidates take beyond `run` that read a prompt in so many prefills each."""
        return COMPRESSING * self.prefill(prompt) * (sum(reads) - len(reads))

    def reads_of(self, candidates: Iterable[Candidate]) -> list[float]:
        """Prefills that each takes to read a prompt, the most first."""
        return sorted((self.reads.get(candidate.key, 1.0) for candidate in candidates), reverse=True)

    def weights(self, weights: int) -> float:
        """Of rounding so many weights."""
        return weights * self.pace.weight

    def probe(self, kinds: Collection[str]) -> float:
        """Of scoring the model's heads by these kinds of questions."""
        settings = ProbeSettings()
        each = settings.depths * settings.repeats * sum(map(self.prefill, settings.lengths))
        return len(kinds) * COMPRESSING * each
