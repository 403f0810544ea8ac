"""A number in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Needles


@dataclass(frozen=True, kw_only=True)
class NiahSingle2(Needles):
    """RULER's niah_single_2, the common needle in a haystack: word, number, essays."""

    name: ClassVar[str] = "ruler-niah-single-2"
