"""Generated reasoning: any data set of reasoning-gym, after solved examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._gym import Gym


@dataclass(frozen=True, kw_only=True)
class Reasoning(Gym):
    """reasoning-gym (2505.24760): `dataset` is one of its names. settings: those that differ from the data set's own
    defaults, as in `max_terms=2+max_digits=1`.
    """

    name: ClassVar[str] = "reasoning"
    metric: ClassVar[str] = "reasoning-gym's score"

    dataset: Annotated[str, Field(min_length=1)] = "letter_counting"
    settings: str = ""

    def source(self) -> tuple[str, Mapping[str, Any]]:
        return self.dataset, settings_of(self.settings)


def settings_of(text: str) -> dict[str, Any]:
    """The settings of `max_terms=2+transformation=original`: numbers, true and false, else text.

    Raises TaskError for a part that is no NAME=VALUE.
    """
    from thrifty.evaluation.tasks import TaskError

    settings: dict[str, Any] = {}
    for part in filter(None, text.split("+")):
        name, separator, value = part.partition("=")
        if not separator or not name or not value:
            raise TaskError(f"'{part}' of the settings '{text}' is not NAME=VALUE. Write e.g. max_terms=2+max_digits=1")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
