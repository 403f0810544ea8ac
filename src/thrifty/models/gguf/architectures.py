"""The architectures of GGUF files that are read, and what each implies beyond its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from thrifty.errors import ConfigError, nearest
from thrifty.models.config.model_config import MLP, Activation, Norm, QKNorm
from thrifty.models.gguf.file import GGUF


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture implies beyond its metadata.

    `permuted`: the rows of query and key are stored for interleaved rotation and must be put back in halves.
    `normalise`: whether the probabilities of the chosen experts are made to sum to 1. `period`: of so many layers the
    last attends to all, the others to a window where the file has one; 1: all have it. `local_rope`: how the layers
    with a window turn: "same", "unscaled" (without the scaling of the others) or "own" (a base of their own, too).
    `softcaps`: of attention scores and logits, where the file names none. `wide_layers`: with so many layers scores
    are scaled by hidden size / heads. `without_rope`: every so-manieth layer does not turn; 0: all do. `scales`:
    embedding, residual and logits have factors. `dense_layers`: the file says how many first layers have no experts.
    """

    permuted: bool = False
    qk_norm: QKNorm = "none"
    normalise: bool = False
    gemma: bool = False
    norm: Norm = "rms"
    pre_norms: bool = True
    post_norms: bool = False
    mlp: MLP = "gated"
    activation: Activation = "silu"
    period: int = 1
    local_rope: Literal["same", "unscaled", "own"] = "same"
    softcaps: tuple[float, float] = (0.0, 0.0)
    wide_layers: int = 0
    without_rope: int = 0
    scales: bool = False
    dense_layers: bool = False


_GEMMA = Architecture(gemma=True, post_norms=True, activation="gelu_tanh")
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(permuted=True, normalise=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(qk_norm="head"),
    "gemma2": replace(_GEMMA, period=2, softcaps=(50.0, 30.0), wide_layers=46),
    "gemma3": replace(_GEMMA, qk_norm="head", period=6, local_rope="own", wide_layers=62),
    "phi3": Architecture(),
    "granite": Architecture(permuted=True, scales=True),
    "smollm3": Architecture(permuted=True, without_rope=4),
    "olmo2": Architecture(qk_norm="full", pre_norms=False, post_norms=True, period=4, local_rope="unscaled"),
    "starcoder2": Architecture(norm="layer", mlp="plain", activation="gelu_tanh"),
    "stablelm": Architecture(norm="layer"),
    "qwen2moe": Architecture(),
    "qwen3moe": Architecture(qk_norm="head", normalise=True),
    "olmoe": Architecture(qk_norm="full"),
    "deepseek": Architecture(permuted=True, dense_layers=True),
}
_REFUSED: Mapping[str, str] = {
    "deepseek2": "latent attention (DeepSeek V2, V3 and what is built on them) is not supported: it is not built yet. "
    "Use a model without it; DeepSeek's distillations into Qwen and Llama, such as DeepSeek-R1-Distill-Qwen-1.5B, load",
}


def architecture(file: GGUF) -> Architecture:
    """The architecture of a file. Raises ConfigError with the nearest known one."""
    name = file.architecture
    if name in _REFUSED:
        raise ConfigError(f"{file.path}: the architecture '{name}': {_REFUSED[name]}.")
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{file.path}: the architecture '{name[:80]}' is not supported. {nearest(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
