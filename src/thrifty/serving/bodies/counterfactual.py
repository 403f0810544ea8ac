"""The field `thrifty.counterfactual`: what is replayed, and what is different about it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from thrifty.serving.bodies.body import Body


class Replacement(Body):
    """Another token in the factual answer. place: 0 is its first token. token: an id, or a text of one token."""

    place: StrictInt = Field(ge=0)
    token: StrictInt | str


class Counterfactual(Body):
    """An answer by noise of places and tokens, the same for every request with this seed. With nothing set it is the
    factual answer, or that to an edited prompt.

    replace: a token of the factual answer. answer: the factual answer, as text or token ids; without it the one that
    this seed gives. hindsight: the answer was not drawn here: noise is made that explains it. prompt, messages: what
    the factual answer stood behind, where the request itself asks something else.
    """

    replace: Replacement | None = None
    answer: str | list[StrictInt] | None = None
    hindsight: StrictBool = False
    prompt: str | list[StrictInt] | None = None
    messages: list[dict[str, Any]] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _belong_together(self) -> Counterfactual:
        if self.hindsight and not self.answer:
            raise PydanticCustomError("counterfactual", "hindsight explains an answer; give counterfactual.answer")
        if self.answer is not None and not (self.hindsight or self.replace):
            raise PydanticCustomError(
                "counterfactual", "answer does nothing without hindsight or replace; leave it out"
            )
        if self.prompt is not None and self.messages is not None:
            raise PydanticCustomError("counterfactual", "prompt and messages both say what was asked; give one")
        if (self.prompt is not None or self.messages is not None) and not (self.hindsight or self.replace):
            raise PydanticCustomError(
                "counterfactual", "prompt and messages do nothing without hindsight or replace; leave them out"
            )
        return self
