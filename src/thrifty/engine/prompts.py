"""What callers give as a prompt: one text or its token ids, a list of them, or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.decoding.option_values import is_array, shown, token_ids
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.models.model import Model

_BYTES = (bytes, bytearray, memoryview)


def prompt_list(prompt: Any) -> list[Any] | None:
    """The prompts of a list (or an array of two dimensions) of them; None for a single prompt.

    Raises PromptError for messages, which a template must put into words first.
    """
    values = prompt.tolist() if is_array(prompt) else prompt
    if isinstance(values, Mapping) or are_messages(values):
        raise _messages_error(prompt)
    if isinstance(values, (str, *_BYTES)) or not isinstance(values, Sequence) or not values:
        return None
    first = values[0]
    if any(are_messages(value) for value in values):
        raise _messages_error(prompt)
    if isinstance(first, (str, *_BYTES, Sequence)) or (is_array(first) and getattr(first, "ndim", 1) > 0):
        return list(values)
    return None


def encoded(model: Model, prompt: Any, options: Mapping[str, Any]) -> list[int]:
    """Token ids of a text, of messages through the chat template, or the ids themselves.

    options: those of a chat (`Model.encode_chat`); only messages take them. Raises PromptError where there is nothing
    to continue, and for a value that is no prompt; CheckpointError for a text where the model has no tokenizer.
    """
    if are_messages(prompt):
        return model.encode_chat(prompt, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise PromptError(f"{given[0]} is for a chat template; give chat() messages, or leave it out")
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is empty; it needs at least 1 character")
        return list(model.require_tokenizer().encode(prompt))
    return prompt_ids(prompt)


def are_messages(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, (str, *_BYTES))
    return is_list and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def prompt_ids(prompt: Any) -> list[int]:
    """The token ids that a caller gives as a prompt. Raises PromptError that says what a prompt may be."""
    if isinstance(prompt, _BYTES):
        raise PromptError(f"the prompt is {shown(prompt)}; decode it to a text first: prompt.decode()")
    if not is_array(prompt) and not isinstance(prompt, Sequence):
        raise PromptError(
            f"the prompt is {shown(prompt)}; use a text, a list or an array of token ids, or a list of messages"
        )
    ids = list(token_ids("the prompt", prompt))
    if not ids:
        raise PromptError("the prompt is empty; it needs at least 1 token")
    return ids


def _messages_error(prompt: Any) -> PromptError:
    return PromptError(f"the prompt is {shown(prompt)}; messages go to chat(), which knows the model's template")
