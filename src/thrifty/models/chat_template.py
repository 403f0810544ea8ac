"""Chat templates: from messages to the prompt that a model was trained on.

A template comes with a checkpoint and is as untrusted as the checkpoint: it runs in the sandbox of `chat_sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import SecurityError

from thrifty.errors import TemplateError
from thrifty.models.chat_sandbox import MAX_OUTPUT, ChatEnvironment
from thrifty.models.tokenizer_settings import MAX_TEMPLATE


class ChatTemplate:
    """One compiled template. Raises TemplateError where it is too long or not valid Jinja."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(f"The chat template has {len(source)} characters; {MAX_TEMPLATE} are allowed.")
        self._environment = ChatEnvironment()
        try:
            self._template = self._environment.from_string(source)
        except TemplateError:
            raise
        except SecurityError as error:
            raise TemplateError(f"The chat template tries to leave its sandbox: {_reason(error)}.") from error
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"The chat template is not valid: line {error.lineno}: {_reason(error)}.") from error
        except (Exception, RecursionError, MemoryError) as error:
            raise TemplateError(f"The chat template is not valid: {_reason(error)}.") from error

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt for `messages`, each with "role" and "content"; `variables` are what else the template sees.

        Raises TemplateError for messages of a wrong form, and for whatever the template does wrong or refuses.
        """
        checked = check_messages(messages)
        self._environment.begin()
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate({**variables, "messages": checked}):
                length += len(part)
                if length > MAX_OUTPUT:
                    raise TemplateError(f"The chat template writes more than {MAX_OUTPUT} characters.")
                parts.append(part)
        except TemplateError:
            raise
        except SecurityError as error:
            raise TemplateError(f"The chat template tries to leave its sandbox: {_reason(error)}.") from error
        except jinja2.TemplateError as error:
            raise TemplateError(f"The chat template refuses these messages: {_reason(error)}.") from error
        except (Exception, RecursionError, MemoryError) as error:
            kind = type(error).__name__
            raise TemplateError(f"The chat template fails: {kind}: {_reason(error)}.") from error
        return "".join(parts)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain dictionaries. Raises TemplateError that names the message and the field."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TemplateError(f"Messages must be a list of {{'role', 'content'}}, not {type(messages).__name__}.")
    if not messages:
        raise TemplateError("The list of messages is empty; it needs at least one.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TemplateError(f"Message {index} must be an object with 'role' and 'content'.")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise TemplateError(f"Message {index} has no 'role' (such as 'user', 'assistant' or 'system').")
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and message.get("tool_calls")):
            raise TemplateError(f"Message {index} ('{role}') has no 'content' text.")
    return [dict(message) for message in messages]


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")[:300]
