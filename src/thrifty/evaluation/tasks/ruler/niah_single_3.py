"""An identifier in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Needles
from thrifty.evaluation.tasks.ruler._words import Kind


@dataclass(frozen=True, kw_only=True)
class NiahSingle3(Needles):
    """RULER's niah_single_3: word, identifier, essays."""

    name: ClassVar[str] = "ruler-niah-single-3"

    value: ClassVar[Kind] = "uuid"
