"""The sizes of the hybrid recall model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.models.config.layer_spec import RecurrentSpec, recurrent_layer
from thrifty.models.config.model_config import ModelConfig, as_dict
from thrifty.reference.decoder import Decoder
from training.recall.network import Shape

RECURRENT = RecurrentSpec(4, 32, 32, "head", temperature=1.0)
CONSTANT, SHARPNESS = 0.1, 1.0
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
        """Biases of the decays: from a fifth of the state left after a token to nearly all. And a beginning of the
        circuit that looks up: the first layer tells what stood before, in directions of its own; the attention compares
        that with the word itself. From random weights neither pays without the other, and training waits for both.
        """
        for name, parameter in decoder.named_parameters():
            if name.endswith("decay.bias"):
                parameter.copy_(torch.linspace(-1.5, 6.0, len(parameter)))
        random = torch.Generator().manual_seed(1)
        turned, values = (_orthogonal(self.hidden, random) for _ in range(2))
        get = decoder.get_parameter
        get("embedding.weight").mul_(2.0)[:, 0] = CONSTANT  # so that queries, keys and gates have a sign to begin with
        first, attending = "layers.0.recurrent", f"layers.{PATTERN.index('a')}.attention"
        for name in ("query", "key", "gate"):
            get(f"{first}.{name}.weight")[:, 0] += 0.5
        get(f"{first}.value.weight").copy_(values)
        get(f"{first}.output.weight").copy_(0.02 * turned @ values.T)
        query, key = get(f"{attending}.query.weight"), get(f"{attending}.key.weight")
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            compared = _orthogonal(self.hidden, random)[:64]
            query[64 * head : 64 * (head + 1)] += SHARPNESS * compared
            key[64 * group : 64 * (group + 1)] += SHARPNESS * compared @ turned.T
        get(f"{attending}.value.weight").copy_(_orthogonal(self.hidden, random))
        get(f"{attending}.output.weight")[:, : self.hidden] += 0.1 * get(f"{attending}.value.weight").T

    def published(self) -> dict[str, object]:
        """What config.json says of it."""
        return {"model_type": "thrifty", "decoder": as_dict(self.config())}

    def tensor_name(self, parameter: str) -> str:
        """Its file calls parameters as the decoder does."""
        return parameter


def _orthogonal(size: int, random: torch.Generator) -> Tensor:
    """[size, size], rows orthonormal."""
    turned: Tensor = torch.linalg.qr(torch.randn(size, size, generator=random))[0]
    return turned
