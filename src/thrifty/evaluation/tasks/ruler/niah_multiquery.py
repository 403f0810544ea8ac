"""The numbers of four keys, asked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Needles


@dataclass(frozen=True, kw_only=True)
class NiahMultiquery(Needles):
    """RULER's niah_multiquery: four keys in one question, essays."""

    name: ClassVar[str] = "ruler-niah-multiquery"

    told: ClassVar[int] = 4
    asked: ClassVar[int] = 4
