"""A number in lines of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Hay, Needles


@dataclass(frozen=True, kw_only=True)
class NiahSingle1(Needles):
    """RULER's niah_single_1, near to passkey retrieval: word, number, repeated noise."""

    name: ClassVar[str] = "ruler-niah-single-1"

    hay: ClassVar[Hay] = "noise"
