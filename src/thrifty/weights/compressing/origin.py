"""How far the linears of a compressed model are from those that it was made of, whatever techniques lie between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.formats.linear import PackedLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model
from thrifty.storage.process import let_go
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, NormInfo, groups
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Technique, relative_error

Scales = dict[str, Floats]
Doubles = npt.NDArray[np.float64]
TILE = 1024  # rows


@dataclass(frozen=True)
class Origin:
    """The parts of a model before its first technique. It holds no copies: what is mapped from a file stays there."""

    config: ModelConfig
    linears: Mapping[str, PackedLinear]
    norms: Mapping[str, Floats]

    @classmethod
    def of(cls, model: Model) -> Origin:
        """The parts as they are now."""
        return cls(model.config, dict(model.linears), dict(model.norms))

    def errors(self, model: Model, techniques: Sequence[Technique]) -> dict[str, float | None]:
        """Of every linear of `model` the relative root-mean-square difference from the one that it was made of; None
        where there is none to hold it against: heads, neurons, experts or layers were left out.

        A factor that a GroupTechnique moved from a source into its readers is no error: the original is scaled by it.
        """
        if model.config != self.config or model.linears.keys() != self.linears.keys():
            return dict.fromkeys(model.linears)
        moved = any(isinstance(technique, GroupTechnique) for technique in techniques)
        factors = self._factors(model) if moved else Factors()
        found: dict[str, float | None] = {}
        for name, after in model.linears.items():
            before = self.linears[name]
            found[name] = 0.0 if after is before else relative_error(before, after, *factors.of(name))
            let_go(before.state().values())
        return found

    def _factors(self, model: Model) -> Factors:
        """What moved between sources and readers, from what both are now and were before."""
        factors, before = Factors(), Model(self.config, dict(self.linears), dict(self.norms))
        for old, new in zip(groups(before), groups(model), strict=True):
            if isinstance(old.source, NormInfo):
                scale = _between_norms(old.source, new.source)
            else:
                scale = _between(old, new, factors.columns.get(old.source.name))
                factors.rows[old.source.name] = np.reciprocal(scale)
            factors.columns.update({reader.name: scale[old.channels] for reader in old.readers})
        return factors


@dataclass(frozen=True)
class Factors:
    """fp32 by the linears' names. rows: [out], columns: [in] that the original is multiplied by."""

    rows: Scales = field(default_factory=dict)
    columns: Scales = field(default_factory=dict)

    def of(self, name: str) -> tuple[Floats | None, Floats | None]:
        """Of rows and of columns; None: 1."""
        return self.rows.get(name), self.columns.get(name)


def _between_norms(old: NormInfo, new: object) -> Floats:
    """By what a norm was divided, fp32 [hidden]; 1 for a channel that it leaves out."""
    assert isinstance(new, NormInfo), "the groups of equal configs are of equal kinds"
    before, after = old.weight + old.offset, new.weight + new.offset
    known = (before != 0) & (after != 0)
    return np.where(known, before / np.where(known, after, 1), np.float32(1)).astype(np.float32)


def _between(old: LinearGroup, new: LinearGroup, columns: Floats | None) -> Floats:
    """By what the rows of a source were divided and the readers' columns multiplied, fp32 [width]: the mean (geometric)
    of the factors that fit both sides best, for both are rounded by now. columns: what the norm before the source put
    into it.
    """
    assert isinstance(old.source, LinearInfo) and isinstance(new.source, LinearInfo)
    before, after = old.source.linear, new.source.linear
    rows = _fit(_products(before, after, 1, columns), _products(after, after, 1))
    crossed, own = np.zeros(old.width), np.zeros(old.width)
    for reader, changed in zip(old.readers, new.readers, strict=True):
        np.add.at(crossed, old.channels, _products(reader.linear, changed.linear, 0))
        np.add.at(own, old.channels, _products(reader.linear, reader.linear, 0))
    scale: Floats = np.sqrt(rows * _fit(crossed, own)).astype(np.float32)
    return scale


def _products(left: PackedLinear, right: PackedLinear, axis: int, columns: Floats | None = None) -> Doubles:
    """Σ left·columns·right along an axis: of each row (1) or of each column (0), fp64."""
    parts: list[Doubles] = []
    for start in range(0, left.out_features, TILE):
        stop = min(start + TILE, left.out_features)
        both = left.tile(start, stop).astype(np.float64) * right.tile(start, stop)
        parts.append((both if columns is None else both * columns).sum(axis=axis))
    whole: Doubles = np.concatenate(parts) if axis else np.sum(parts, axis=0)
    return whole


def _fit(crossed: Doubles, own: Doubles) -> Doubles:
    """The factor of least squares; 1 where there is nothing to fit, or nothing above zero fits."""
    known = (crossed > 0) & (own > 0)
    return np.where(known, crossed / np.where(known, own, 1), 1.0)
