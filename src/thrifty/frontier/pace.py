"""How long measurements take: a short run of the uncompressed model, and the roofline for what is longer."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.forcing import force
from thrifty.evaluation.heads.probe import ProbeSettings
from thrifty.evaluation.measuring.speed import warm_up
from thrifty.evaluation.roofline.cost import decode_seconds, prefill_seconds
from thrifty.evaluation.text import held_out
from thrifty.weights.structure import linears
from thrifty.weights.technique import WeightTechnique

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.roofline.machine import Machine
    from thrifty.evaluation.roofline.sizes import ModelSizes
    from thrifty.frontier.candidates import Candidate
    from thrifty.models.model import Model
    from thrifty.weights.technique import Technique

PROMPT, STEPS = 192, 8  # tokens of the short run
SAMPLED = 1 << 22  # weights that are rounded to see how long all of them take
LOGIT = 4e-8  # seconds that scoring takes for every logit
COMPRESSING = 1.25  # times the uncompressed model's run: what policies watch, move and round


@dataclass(frozen=True)
class SearchPace:
    """prompt: tokens of the run that it was measured on. prefill, step: its seconds, of the whole prompt and of a
    decoded token after it. weight: seconds that rounding one weight takes.
    """

    prompt: int
    prefill: float
    step: float
    weight: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchPace:
        """What `as_dict` made."""
        return cls(**values)


def measure(engine: Engine, rounding: float) -> SearchPace:
    """The pace of the engine's model, with the full cache. rounding: seconds a weight, see `rounding_seconds`."""
    prompt = max(1, min(PROMPT, engine.probe().context - STEPS - 2))
    tokens = held_out(engine.model.require_tokenizer(), prompt + STEPS)
    warm_up(engine)
    seconds = [step.seconds for step in force(engine, tokens[:prompt], tokens[prompt:], [])]
    return SearchPace(prompt, seconds[0], sum(seconds[1:]) / max(1, len(seconds) - 1), rounding)


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
class Forecast:
    """Seconds of what a search does, from a pace. reads: by a candidate's key how many prefills it takes to read a
    prompt (see `reading.prefills`); 1 for what is not there. unscored: kinds of head scores that nobody measured yet.
    """

    pace: SearchPace
    sizes: ModelSizes
    machine: Machine
    reads: Mapping[str, float] = field(default_factory=dict)
    unscored: frozenset[str] = frozenset()

    def prefill(self, tokens: int) -> float:
        """Of a prompt: a longer one takes what its share of attention adds, too."""
        own = prefill_seconds(self.sizes, self.pace.prompt, self.machine)
        return self.pace.prefill * prefill_seconds(self.sizes, tokens, self.machine) / own

    def step(self, held: int) -> float:
        """Of a decoded token of a sequence whose cache holds so many bytes."""
        return self.pace.step * (1 + held / self.machine.bandwidth / decode_seconds(self.sizes, 0, 1, self.machine))

    def run(self, prompt: int, steps: int, scored: int) -> float:
        """Of one candidate that reads its prompt once: a prompt, tokens after it, and the scores of some."""
        held = round(prompt * self._token_bytes())
        logits = scored * self.sizes.config.vocabulary_size * LOGIT
        return COMPRESSING * (self.prefill(prompt) + steps * self.step(held)) + logits

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

    def _token_bytes(self) -> float:
        config = self.sizes.config
        widths = [config.widths(index) for index in range(len(config.layers))]
        return sum(4.0 * kv_heads * head_dim for _, kv_heads, head_dim in widths)
