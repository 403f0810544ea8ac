"""Which format of calls a model knows: by its chat template."""

from __future__ import annotations

from typing import Any

from thrifty.serving.errors import RequestError
from thrifty.serving.tool_calls.hermes import Hermes
from thrifty.serving.tool_calls.llama import Llama
from thrifty.serving.tool_calls.mistral import Mistral
from thrifty.serving.tool_calls.tool_format import ToolFormat

FORMATS: tuple[ToolFormat, ...] = (Hermes(), Mistral(), Llama())


def format_of(tokenizer: Any) -> ToolFormat:
    """The format of a model's tokenizer. Raises RequestError where its chat template teaches none that is known."""
    template = tokenizer.settings.tool_template or tokenizer.settings.chat_template or ""
    for form in FORMATS:
        if form.knows(template):
            return form
    names = ", ".join(form.name for form in FORMATS)
    raise RequestError(
        f"this model's chat template writes tool calls in no form that is known here ({names}); leave tools out",
        param="tools",
    )


def control_tokens(form: ToolFormat, tokenizer: Any) -> dict[str, int]:
    """The ids of a format's markers that are control tokens, whose text an answer leaves out."""
    ids = {text: tokenizer.backend.token_to_id(text) for text in form.markers}
    return {text: token for text, token in ids.items() if token in tokenizer.special_ids}
