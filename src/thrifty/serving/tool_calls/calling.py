"""Tools of one request in the format of its model: the grammar of the answer, and what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.decoding.grammar import Grammar
from thrifty.serving.tool_calls.choosing import control_tokens, format_of
from thrifty.serving.tool_calls.offer import Offer
from thrifty.serving.tool_calls.reading import CallReader


class Calling:
    """An offer of tools to a model."""

    def __init__(self, offer: Offer, tokenizer: Any) -> None:
        """Raises RequestError where the model's chat template teaches no format of calls that is known."""
        self._offer = offer
        self._form = format_of(tokenizer)
        self._control = control_tokens(self._form, tokenizer)

    @property
    def grammar(self) -> Grammar:
        """Of the whole answer."""
        return self._form.grammar(self._offer, self._control)

    @property
    def shown(self) -> list[Mapping[str, Any]]:
        """The tools as the chat template gets them."""
        return list(self._offer.shown)

    def readers(self, samples: int) -> list[CallReader]:
        """One for each sample."""
        return [CallReader(self._form, self._offer, self._control) for _ in range(samples)]
