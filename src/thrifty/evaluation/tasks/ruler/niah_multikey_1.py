"""One of four numbers in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import ManyKeys


@dataclass(frozen=True, kw_only=True)
class NiahMultikey1(ManyKeys):
    """RULER's niah_multikey_1: four keys of which one is asked, essays."""

    name: ClassVar[str] = "ruler-niah-multikey-1"

    told: ClassVar[int] = 4
