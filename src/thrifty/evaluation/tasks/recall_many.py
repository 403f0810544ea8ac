"""Recall of one of many keys: the others have the same form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.evaluation.tasks.recall import Recall


@dataclass(frozen=True, kw_only=True)
class RecallMany(Recall):
    """Multi-key retrieval of RULER (2404.06654, §3.1): `keys` sentences alike, one is asked for."""

    name: ClassVar[str] = "recall-many"

    keys: Annotated[int, Field(ge=2, le=len(NAMES))] = 4
