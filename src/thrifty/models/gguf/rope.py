"""The rope of a GGUF file: what its metadata scales, and the divisors that it stores as tensors.

Both apply at once, as in llama.cpp: the angle of each channel pair is scaled, and divided by the pair's own divisor.
"""

from __future__ import annotations

from thrifty.errors import ConfigError, nearest
from thrifty.kernels.reference.ggml import values
from thrifty.models.config.model_config import RopeConfig, RopeScaling, yarn_attention_factor
from thrifty.models.gguf.file import GGUF

KINDS = ("none", "linear", "yarn", "longrope")
DIVISORS = "rope_freqs.weight"
SHORT_DIVISORS, LONG_DIVISORS = "rope_factors_short.weight", "rope_factors_long.weight"


def read_rope(file: GGUF, theta: float, dimension: int, context: int) -> RopeConfig:
    """The rope of the layers without a sliding window. context: the file's own, in tokens.

    Raises ConfigError or CheckpointError naming the field or tensor.
    """
    return _Reader(file, dimension, context).rope(theta)


class _Reader:
    def __init__(self, file: GGUF, dimension: int, context: int) -> None:
        self.file, self.metadata, self.dimension, self.context = file, file.metadata, dimension, context

    def key(self, field: str) -> str:
        return f"{self.file.architecture}.rope.{field}"

    def rope(self, theta: float) -> RopeConfig:
        # Phi-3's converter writes the two sets of divisors, and no type.
        default = "longrope" if LONG_DIVISORS in self.file.tensors else "linear"
        kind = self.metadata.text(self.key("scaling.type"), default)
        if kind not in KINDS:
            raise ConfigError(
                f"{self.file.path}: '{self.key('scaling.type')}' is '{kind[:40]}'. {nearest(kind, KINDS)}"
            )
        self._check_tensors(kind)
        divisors = self.divisors(DIVISORS) if DIVISORS in self.file.tensors else ()
        return RopeConfig(theta, self.dimension, self.scaling(kind), divisors)

    def scaling(self, kind: str) -> RopeScaling | None:
        factor = 1.0 if kind == "none" else self.factor()
        attention = self.metadata.number(self.key("scaling.attn_factor"), 1.0, above=0)
        if kind == "longrope":
            return self.longrope(factor, attention)
        if kind == "yarn":
            return self.yarn(factor, attention)
        return None if factor == attention == 1.0 else RopeScaling("linear", factor, attention_factor=attention)

    def factor(self) -> float:
        """By its name of today, or the older one; 0 stands for none."""
        name = "scaling.factor" if self.key("scaling.factor") in self.metadata else "scale_linear"
        factor = self.metadata.number(self.key(name), 1.0)
        if factor and not 1e-3 <= factor <= 1e6:
            raise ConfigError(f"{self.file.path}: '{self.key(name)}' is {factor}; it must lie between 0.001 and 1e6")
        return factor or 1.0

    def original_context(self) -> int:
        return self.metadata.integer(self.key("scaling.original_context_length"), self.context, minimum=1)

    def yarn(self, factor: float, attention: float) -> RopeScaling:
        extrapolation = self.metadata.number(self.key("scaling.yarn_ext_factor"), 1.0)
        if extrapolation not in (1.0, -1.0):
            raise ConfigError(
                f"{self.file.path}: '{self.key('scaling.yarn_ext_factor')}' is {extrapolation}; only 1 is supported"
            )
        attention *= self.metadata.number(self.key("scaling.yarn_attn_factor"), 1.0, above=0)
        return RopeScaling(
            "yarn",
            factor,
            self.original_context(),
            attention_factor=attention * yarn_attention_factor(factor),
            beta_fast=self.metadata.number(self.key("scaling.yarn_beta_fast"), 32.0, above=0),
            beta_slow=self.metadata.number(self.key("scaling.yarn_beta_slow"), 1.0, above=0),
        )

    def longrope(self, factor: float, attention: float) -> RopeScaling:
        """A factor that stands beside the two sets of divisors divides as well."""
        short, long = (
            tuple(factor * value for value in self.divisors(name)) for name in (SHORT_DIVISORS, LONG_DIVISORS)
        )
        original = self.original_context()
        return RopeScaling("longrope", 1.0, original, attention_factor=attention, short_factor=short, long_factor=long)

    def divisors(self, name: str) -> tuple[float, ...]:
        """One divisor a channel pair."""
        info, pairs = self.file.tensor(name), self.dimension // 2
        if info.shape != (pairs,):
            raise ConfigError(f"{self.file.path}: tensor '{name}' has shape {list(info.shape)}, not [{pairs}]")
        factors = tuple(float(value) for value in values(info.type, self.file.rows(name))[0])
        for value in factors:
            if not 1e-6 <= value <= 1e9:
                raise ConfigError(
                    f"{self.file.path}: tensor '{name}' holds {value}; its divisors must lie between 1e-06 and 1e9"
                )
        return factors

    def _check_tensors(self, kind: str) -> None:
        """Refuse tensors that the kind of scaling has no use for, instead of leaving them out."""
        unused = (DIVISORS,) if kind == "longrope" else (SHORT_DIVISORS, LONG_DIVISORS)
        for name in unused:
            if name in self.file.tensors:
                raise ConfigError(
                    f"{self.file.path}: tensor '{name}' does not go with '{self.key('scaling.type')}' '{kind}'; "
                    "convert the model again"
                )
