"""Generated reasoning: any data set of reasoning-gym, after solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._gym import Gym


@dataclass(frozen=True, kw_only=True)
class Reasoning(Gym):
    """reasoning-gym (2505.24760): `dataset` is one of its names, taken with its own default settings."""

    name: ClassVar[str] = "reasoning"
    metric: ClassVar[str] = "reasoning-gym's score"

    dataset: Annotated[str, Field(min_length=1)] = "letter_counting"

    def source(self) -> tuple[str, Mapping[str, Any]]:
        return self.dataset, {}
