"""Trains the hybrid recall model: `python -m training.hybrid.train --out FOLDER`; goes on after a kill."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from thrifty.models.config.layer_spec import RecurrentSpec, recurrent_layer
from thrifty.models.config.model_config import ModelConfig, as_dict
from thrifty.reference.decoder import Decoder
from training.recall.curriculum import Plan, Stage
from training.recall.network import Shape
from training.recall.train import Settings, Training

PATTERN = "rrar"  # a letter a layer: recurrent, attention
STAGES = (
    Stage(64, 32, 3, {"drill": 1.0}, most=1500),
    Stage(128, 16, 5, {"drill": 0.4, "recall": 0.6}, most=1200),
    Stage(256, 8, 8, {"drill": 0.2, "recall": 0.8}, goal=2.0, most=10**9),
)


@dataclass(frozen=True)
class HybridShape(Shape):
    """Sizes of the hybrid. Recurrent heads decay at rates of their own from the start: some see a token, some all."""

    vocabulary: int = 1024
    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 2048
    theta: float = 1e4
    recurrent: RecurrentSpec = RecurrentSpec(4, 32, 32, "head", temperature=1.0)

    def config(self) -> ModelConfig:
        """As the engine takes it."""
        plain = super().config()
        own = recurrent_layer(self.recurrent)
        layers = tuple(own if letter == "r" else plain.layers[0] for letter in PATTERN)
        return dataclasses.replace(plain, family="thrifty", layers=layers)

    def begin(self, decoder: Decoder) -> None:
        """Biases of the decays, from half to almost nothing a token."""
        for name, parameter in decoder.named_parameters():
            if name.endswith("decay.bias"):
                parameter.copy_(torch.linspace(-1.0, 6.0, len(parameter)))

    def published(self) -> dict[str, object]:
        """What config.json says of it."""
        return {"model_type": "thrifty", "decoder": as_dict(self.config())}

    def tensor_name(self, parameter: str) -> str:
        """Its file calls parameters as the decoder does."""
        return parameter


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(STAGES, context=2048)
    settings = Settings(given.steps, 40, 400, rate=3e-3, wiring=None, shape=HybridShape(), plan=plan)
    Training(settings, given.out, lambda line: print(line, flush=True)).run()


if __name__ == "__main__":
    main()
