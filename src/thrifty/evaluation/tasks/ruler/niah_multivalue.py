"""All four numbers of one key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Needles


@dataclass(frozen=True, kw_only=True)
class NiahMultivalue(Needles):
    """RULER's niah_multivalue: four values of one key, essays."""

    name: ClassVar[str] = "ruler-niah-multivalue"

    values: ClassVar[int] = 4
