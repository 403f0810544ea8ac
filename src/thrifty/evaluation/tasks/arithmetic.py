"""Arithmetic: short sums after solved ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._gym import Gym


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Gym):
    """`basic_arithmetic` of reasoning-gym (2505.24760): `terms` numbers of up to `digits` digits.

    subtract: whether some terms are taken away instead of added.
    """

    name: ClassVar[str] = "arithmetic"
    metric: ClassVar[str] = "share of right results"

    terms: Annotated[int, Field(ge=2, le=8)] = 2
    digits: Annotated[int, Field(ge=1, le=6)] = 1
    subtract: bool = False

    def source(self) -> tuple[str, Mapping[str, Any]]:
        return "basic_arithmetic", {
            "min_terms": self.terms,
            "max_terms": self.terms,
            "min_digits": 1,
            "max_digits": self.digits,
            "operators": ("+", "-") if self.subtract else ("+",),
            "allow_parentheses": False,
            "allow_negation": False,
        }
