"""How long runs of a model take: a short run tells its pace, and the roofline what longer prompts add to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.forcing import force
from thrifty.evaluation.measuring.speed import warm_up
from thrifty.evaluation.roofline.cost import decode_seconds, prefill_seconds
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.roofline.machine import Machine
    from thrifty.evaluation.roofline.sizes import ModelSizes

PROMPT, STEPS = 192, 8  # tokens of the short run
COMPRESSING = 1.25  # times the uncompressed model's run: what policies watch, move and round


@dataclass(frozen=True)
class Pace:
    """prompt: tokens of the run that it was measured on. prefill, step: its seconds, of the whole prompt and of a
    decoded token after it.
    """

    prompt: int
    prefill: float
    step: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def short_run(engine: Engine) -> Pace:
    """The pace of the engine's model, with the full cache."""
    prompt = max(1, min(PROMPT, engine.probe().context - STEPS - 2))
    tokens = held_out(engine.model.require_tokenizer(), prompt + STEPS)
    warm_up(engine)
    seconds = [step.seconds for step in force(engine, tokens[:prompt], tokens[prompt:], [])]
    return Pace(prompt, seconds[0], sum(seconds[1:]) / max(1, len(seconds) - 1))


@dataclass(frozen=True)
class Times:
    """Seconds that runs of a model take, from its pace. machine: of its figures only the ratios count."""

    pace: Pace
    sizes: ModelSizes
    machine: Machine

    def prefill(self, tokens: int) -> float:
        """Of a prompt: a longer one takes what its share of attention adds, too."""
        own = prefill_seconds(self.sizes, self.pace.prompt, self.machine)
        return self.pace.prefill * prefill_seconds(self.sizes, tokens, self.machine) / own

    def step(self, held: int) -> float:
        """Of a decoded token of a sequence whose cache holds so many bytes."""
        return self.pace.step * (1 + held / self.machine.bandwidth / decode_seconds(self.sizes, 0, 1, self.machine))

    def held(self, tokens: int) -> int:
        """Bytes of the full cache of so many tokens, or somewhat more where layers have windows."""
        config = self.sizes.config
        widths = [config.widths(index) for index in range(len(config.layers))]
        return round(tokens * sum(4.0 * kv_heads * head_dim for _, kv_heads, head_dim in widths))
