"""The base of all bodies."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A body whose unknown fields are an error that names them."""

    model_config = ConfigDict(extra="forbid")
