"""One of as many identifiers as there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Hay, ManyKeys
from thrifty.evaluation.tasks.ruler._words import Kind


@dataclass(frozen=True, kw_only=True)
class NiahMultikey3(ManyKeys):
    """RULER's niah_multikey_3: identifiers as keys and values, and a haystack of such needles."""

    name: ClassVar[str] = "ruler-niah-multikey-3"

    hay: ClassVar[Hay] = "needles"
    key: ClassVar[Kind] = "uuid"
    value: ClassVar[Kind] = "uuid"
