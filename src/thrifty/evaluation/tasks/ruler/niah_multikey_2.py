"""One of as many numbers as there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks.ruler._needles import Hay, ManyKeys


@dataclass(frozen=True, kw_only=True)
class NiahMultikey2(ManyKeys):
    """RULER's niah_multikey_2: word, number, and a haystack of such needles."""

    name: ClassVar[str] = "ruler-niah-multikey-2"

    hay: ClassVar[Hay] = "needles"
