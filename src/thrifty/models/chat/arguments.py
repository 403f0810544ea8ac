"""What callers give beside messages, as `Tokenizer.encode_chat` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.errors import PromptError

CHAT_OPTIONS = ("tools", "documents", "enable_thinking", "template_arguments", "control_tokens_in_messages")
"""The options of a chat; all others that a template reads go into `template_arguments`."""
_OWN = ("messages", "add_generation_prompt", "control_tokens_in_messages")
SHOWN = 60  # characters of a value in a message


def chat_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a chat with those of `template_arguments` beside them; None is not given.

    Raises PromptError for one that is given twice, is no argument of a template, or has the wrong type.
    """
    more = options.get("template_arguments") or {}
    if not isinstance(more, Mapping):
        raise PromptError(f"template_arguments = {_shown(more)} is no mapping; use {{name: value}}")
    given = {name: value for name, value in options.items() if name != "template_arguments" and value is not None}
    for name in more:
        if not isinstance(name, str) or name in _OWN:
            raise PromptError(f"template_arguments names {name!r}, which is no argument of a template; leave it out")
        if name in given:
            raise PromptError(f"{name} is given twice: as an option and in template_arguments; give it once")
    control = given.get("control_tokens_in_messages", False)
    if not isinstance(control, bool) and not str(getattr(control, "dtype", "")).endswith("bool"):
        raise PromptError(f"control_tokens_in_messages = {_shown(control)} is out of range; use True or False")
    return {**more, **given}


def check_messages(messages: Any) -> None:
    """Raise PromptError for what is no list of messages."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, bytes, bytearray, memoryview))
    if not is_list or not all(isinstance(message, Mapping) for message in messages):
        raise PromptError(f'messages = {_shown(messages)} are no messages; use [{{"role": ..., "content": ...}}]')


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return f"{text} ({type(value).__name__})"
