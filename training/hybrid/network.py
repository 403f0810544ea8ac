"""The sizes of the hybrid recall model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from thrifty.models.config.layer_spec import RecurrentSpec, recurrent_layer
from thrifty.models.config.model_config import ModelConfig, as_dict
from thrifty.reference.decoder import Decoder
from training.recall.network import Shape

RECURRENT = RecurrentSpec(4, 32, 32, "head", temperature=1.0)
PATTERN = "rrar"  # a letter a layer: recurrent, attention


@dataclass(frozen=True)
class HybridShape(Shape):
    """Recurrent heads decay at rates of their own from the start: the first sees a token, the last all. rate: of
    learning, at its highest."""

    vocabulary: int = 96
    hidden: int = 128
    intermediate: int = 256
    layers: int = len(PATTERN)
    heads: int = 4
    kv_heads: int = 2
    context: int = 2048
    theta: float = 1e4
    recurrent: RecurrentSpec = RECURRENT
    rate: float = 4e-3

    def config(self) -> ModelConfig:
        """As the engine takes it."""
        plain, own = super().config(), recurrent_layer(self.recurrent)
        layers = tuple(own if letter == "r" else plain.layers[0] for letter in PATTERN)
        return dataclasses.replace(plain, family="thrifty", layers=layers)

    def begin(self, decoder: Decoder) -> None:
        """Biases of the decays: from a fifth of the state left after a token to nearly all."""
        for name, parameter in decoder.named_parameters():
            if name.endswith("decay.bias"):
                parameter.copy_(torch.linspace(-1.5, 6.0, len(parameter)))

    def published(self) -> dict[str, object]:
        """What config.json says of it."""
        return {"model_type": "thrifty", "decoder": as_dict(self.config())}

    def tensor_name(self, parameter: str) -> str:
        """Its file calls parameters as the decoder does."""
        return parameter
