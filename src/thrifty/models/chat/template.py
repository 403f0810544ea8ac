"""Chat templates: from messages to the prompt that a model was trained on.

A template comes with a checkpoint and is as untrusted as the checkpoint: it runs in the sandbox of `chat_sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import SecurityError

from thrifty.errors import TemplateError, nearest
from thrifty.models.chat import message_text
from thrifty.models.chat.limits import MAX_OUTPUT
from thrifty.models.chat.message_text import marked
from thrifty.models.chat.messages import check_arguments, check_messages
from thrifty.models.chat.sandbox import ChatEnvironment
from thrifty.models.tokens.settings import MAX_TEMPLATE


class ChatTemplate:
    """One compiled template. Raises TemplateError where it is too long or not valid Jinja."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise TemplateError(f"The chat template has {len(source)} characters; {MAX_TEMPLATE} are allowed.")
        self._environment = ChatEnvironment()
        try:
            self._template = self._environment.from_string(source)
            self._names = meta.find_undeclared_variables(self._environment.parse(source))
        except TemplateError:
            raise
        except SecurityError as error:
            raise TemplateError(f"The chat template tries to leave its sandbox: {_reason(error)}.") from error
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"The chat template is not valid: line {error.lineno}: {_reason(error)}.") from error
        except (Exception, RecursionError, MemoryError) as error:
            raise TemplateError(f"The chat template is not valid: {_reason(error)}.") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`, each with "role" and "content"; `variables` are what else the template sees.

        arguments: variables that somebody asked for by name, such as `tools`, `documents` or `enable_thinking`; None
        counts as not given, and so does an empty list where the template does not read it. `tools` and `documents` are
        None where they are not given, as templates expect.

        What came out of a message, a tool or a document is marked in the result (`message_text.MessageText`).
        Raises TemplateError for messages of a wrong form, for an argument that the template does not read, and for
        whatever the template does wrong or refuses.
        """
        try:
            checked = check_messages(messages)
            given = check_arguments({name: value for name, value in (arguments or {}).items() if value is not None})
            texts = {name: marked(given.get(name)) for name in ("tools", "documents")}
        except RecursionError as error:
            raise TemplateError("The messages or arguments are nested too deeply.") from error
        for name in given:
            if name not in self._names and given[name] != []:
                known = nearest(name, self._asked) if self._asked else "It takes no arguments at all."
                raise TemplateError(f"The model's chat template takes no '{name}'; leave it out. {known}")
        others = {name: value for name, value in given.items() if name not in texts}
        return self._write({**texts, **variables, **others, "messages": checked})

    @property
    def _asked(self) -> list[str]:
        """The variables that a caller may give."""
        own = {*self._environment.globals, "messages", "add_generation_prompt"}
        return [name for name in self._names if name not in own and not name.endswith("_token")]

    def _write(self, variables: Mapping[str, Any]) -> str:
        self._environment.allowance.begin()
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(variables):
                length += len(part)
                if length > MAX_OUTPUT:
                    raise TemplateError(f"The chat template writes more than {MAX_OUTPUT} characters.")
                parts.append(self._environment.written(part))
        except TemplateError:
            raise
        except SecurityError as error:
            raise TemplateError(f"The chat template tries to leave its sandbox: {_reason(error)}.") from error
        except jinja2.TemplateError as error:
            raise TemplateError(f"The chat template refuses these messages: {_reason(error)}.") from error
        except (Exception, RecursionError, MemoryError) as error:
            kind = type(error).__name__
            raise TemplateError(f"The chat template fails: {kind}: {_reason(error)}.") from error
        finally:
            self._environment.allowance.begin()  # no value outlives its rendering
        return message_text.joined(parts)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")[:300]
