"""The base of all bodies."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A body whose unknown fields are an error that names them."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _texts_are_texts(cls, given: Any) -> Any:
        """JSON can spell halves of a surrogate pair, which are no characters: no tokenizer or answer can hold them."""
        left = [given]
        while left:
            value = left.pop()
            if isinstance(value, str) and not value.isascii() and _has_surrogate(value):
                raise PydanticCustomError("surrogate", "a text holds half of a surrogate pair, which is no character")
            if isinstance(value, dict):
                left.extend((*value, *value.values()))
            elif isinstance(value, list):
                left.extend(value)
        return given


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
