"""The sandbox of chat templates: Jinja's immutable one, and bounds on what a template can make and how long it runs.

Jinja keeps a template from Python's internals, but not from `"a" * 10**10` or from doubling a value forty times. Here
every value that a template makes (by an operator, a literal, a slice, a call, a filter, a block) is measured before or
as it is made, and the clock is looked at in every one of these steps and at the start of every loop. What all of them
take together is charged to the allowance of the rendering (`chat_allowance`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from thrifty.errors import TemplateError
from thrifty.models.chat import limits, message_text
from thrifty.models.chat.allowance import OVERHEAD, Allowance
from thrifty.models.chat.compiler import Generation, Generator
from thrifty.models.chat.message_text import MessageText


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXT_METHODS = _names(
    """
    startswith endswith strip lstrip rstrip split rsplit splitlines upper lower title capitalize swapcase casefold
    replace join find rfind index rindex count isdigit isdecimal isnumeric isalpha isalnum isspace isupper islower
    istitle isascii partition rpartition removeprefix removesuffix
    """
)
_TEXT_FILTERS = _names(
    "capitalize e escape format indent lower replace safe string title trim truncate upper urlencode wordcount"
)
_FILTERS = _TEXT_FILTERS | _names(
    """
    abs count d default dictsort first float int items join last length list map max min reject rejectattr reverse
    round select selectattr sort sum tojson unique
    """
)


# Filters that only call methods of a text, which keep its marks. What others write counts as a message's, all of it.
_EXACT = _names("capitalize d default first join last lower max min replace reverse string trim upper")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template. allowance: of the rendering in this thread.

    Raises TemplateError for what goes beyond a bound, jinja2's SecurityError for what leaves the sandbox.
    """

    intercepted_binops = frozenset(("*", "**", "+", "%", "-", "//"))
    intercepted_unops = frozenset("-")

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False)
        self.code_generator_class = Generator
        self.concat = self._concat  # type: ignore[method-assign]
        self.finalize = _finalize
        self.allowance = Allowance()
        functions = {name: self.filters[name] for name in _FILTERS}
        functions |= {"tojson": self._to_json, "wordcount": limits.count_words}
        self.filters = {name: self._guarded(name, function) for name, function in functions.items()}
        self.filters |= {"_loop": self._loop, "_spread": self._spread}
        self.tests = {**self.tests, "none": _is_none}
        self.globals = {
            "range": limits.bounded_range,
            "dict": _dict,
            "namespace": self._namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def kept(self, value: Any) -> Any:
        """The value, charged, without what it refers to."""
        self.allowance.keep(value)
        return value

    def written(self, text: str) -> str:
        """A part of what the template writes, charged."""
        self.allowance.charge(len(text) + OVERHEAD)
        return text

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes)) and attr not in _TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__!r} is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        return None if wrapper is None else functools.partial(self._format_braces, value.__self__, wrapper)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.allowance.tick()
        limits.check_operator(operator, left, right)
        if operator == "%" and isinstance(left, str):
            return self.kept(_percent(left, right if isinstance(right, tuple) else (right,), right))
        return self.kept(super().call_binop(context, operator, left, right))

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        return self.kept(super().call_unop(context, operator, arg))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.allowance.tick()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            args = limits.method_arguments(owner, name, args, kwargs)
            if not isinstance(owner, MessageText) and message_text.has_marks(args):
                function = getattr(MessageText(owner, ()), name)
            return self._fresh(super().call(context, function, *args, **kwargs))
        if isinstance(function, LoopContext):
            args = tuple(limits.listed(argument) for argument in args)
        value = limits.measured(super().call(context, function, *args, **kwargs))
        return value if isinstance(function, Macro) or name == "get" else self._fresh(value)

    def made(self, value: Any) -> Any:
        """Called by compiled templates for every list, tuple and dictionary that they write out."""
        self.allowance.tick()
        self.allowance.charge(len(value) * OVERHEAD)
        return self.kept(limits.measured(value))

    def joined(self, values: tuple[Any, ...]) -> str:
        """Called by compiled templates for the operator `~`."""
        self.allowance.tick()
        text: str = self.kept(message_text.joined(map(message_text.written, limits.measured(values))))
        return text

    def buffer(self) -> _Buffer:
        """Called by compiled templates for where a block or macro writes to."""
        return _Buffer(self)

    def _fresh(self, value: Any) -> Any:
        """A value that a function made, charged with its items, and measured."""
        if isinstance(value, (list, tuple)):
            self.allowance.keep(*value)
        return self.kept(limits.measured(value))

    def _concat(self, parts: Iterable[str]) -> str:
        """Called by compiled templates for what a block or macro has written."""
        self.allowance.tick()
        texts = parts if isinstance(parts, _Buffer) else _Buffer(self)
        if texts is not parts:
            texts.extend(parts)
        written = sum(map(len, texts))
        limits.require(written, limits.MAX_OUTPUT)
        text: str = self.kept(message_text.joined(texts))
        self.allowance.credit(written + OVERHEAD * len(texts))
        texts.clear()
        return text

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filter(loop.iter, "_loop")
        call: Any
        for call in tree.find_all((nodes.Call, nodes.Filter, nodes.Test)):
            call.dyn_args = call.dyn_args and _filter(call.dyn_args, "_spread")
            call.dyn_kwargs = call.dyn_kwargs and _filter(call.dyn_kwargs, "_spread")
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateError(f"The chat template reads another file (line {node.lineno}), which is not allowed.")
        for node in tree.find_all((nodes.EvalContextModifier, nodes.ScopedEvalContextModifier)):
            raise TemplateError(f"The chat template escapes for HTML (line {node.lineno}), which is not allowed.")
        return tree

    def _loop(self, values: Any) -> Any:
        """What a loop runs over: the clock is looked at when it begins, and for generators in every pass."""
        self.allowance.tick()
        return values if isinstance(values, Sized) else self._passes(values)

    def _passes(self, values: Iterable[Any]) -> Iterable[Any]:
        for value in values:
            self.allowance.tick()
            yield value

    def _spread(self, values: Any) -> Any:
        """What a call takes with `*` or `**`: copied by Python, and again by a macro."""
        values = limits.listed(values)
        if isinstance(values, Sized):
            limits.require(len(values))
            self.allowance.charge(4 * OVERHEAD * len(values))
        return values

    def _namespace(self, *args: Any, **kwargs: Any) -> _Namespace:
        values = dict(*args, **kwargs)
        self.allowance.charge(sys.getsizeof(values) + OVERHEAD)  # for good: a namespace copies it
        return _Namespace(values)

    def _to_json(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = limits.json_text(self.written, _with_null(value), *args, **kwargs)
        return MessageText(text) if message_text.has_marks(value) else text

    def _format_braces(self, pattern: str, wrapper: Callable[..., str], /, *args: Any, **kwargs: Any) -> str:
        limits.check_braces(pattern, *args, **kwargs)
        exact = not isinstance(pattern, MessageText)
        text: str = self.kept(message_text.formatted(wrapper, args, kwargs, exact))
        return text if exact else _marked(text)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.allowance.tick()
            start = 1 if hasattr(function, "jinja_pass_arg") else 0
            values = [limits.listed(value) for value in args[start:]]
            if name in _TEXT_FILTERS:
                values = [message_text.written(limits.measured(values[0])), *values[1:]]
            limits.check_filter(name, *values, **kwargs)
            result = _filtered(name, functools.partial(function, *args[:start]), values, kwargs)
            return result if any(result is value for value in values) else self._fresh(result)

        run.__dict__.pop("jinja_async_variant", None)
        return run


class _Buffer(list[str]):
    """What a block or macro has written so far, charged to the rendering."""

    def __init__(self, environment: ChatEnvironment) -> None:
        super().__init__()
        self._environment = environment

    def append(self, text: str) -> None:
        super().append(self._environment.written(text))

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.append(text)


class _Namespace(Namespace):
    """A namespace without hidden names, whose text does not grow with what it holds."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Absent(MessageText):
    """A text that writes nothing, and that templates see as none."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other is None or str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other


ABSENT = _Absent("")
"""The content of a message that has none."""


def _is_none(value: Any) -> bool:
    return value is None or value is ABSENT


def _with_null(value: Any) -> Any:
    """A message, or a list of them, in which content that is absent is null."""
    if isinstance(value, list) and any(_lacks_content(item) for item in value):
        return [_with_null(item) if _lacks_content(item) else item for item in value]
    return {**value, "content": None} if _lacks_content(value) else value


def _lacks_content(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("content") is ABSENT


def _finalize(value: Any) -> str:
    return value if isinstance(value, str) else message_text.written(limits.measured(value))


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _filtered(name: str, function: Callable[..., Any], values: list[Any], named: Mapping[str, Any]) -> Any:
    """A filter's result, with the marks of messages."""
    if name == "format":
        return _percent(values[0], tuple(values[1:]), named or tuple(values[1:]))
    if name == "join" and message_text.has_marks(values):
        separator = named.get("d", values[1] if len(values) > 1 else "")
        rest = {key: value for key, value in named.items() if key != "d"}
        return function(values[0], MessageText(str(separator), ()), *values[2:], **rest)
    marks = any(isinstance(value, MessageText) for value in (*values, *named.values()))
    if name == "replace" and marks and not isinstance(values[0], MessageText):
        values = [MessageText(values[0], ()), *values[1:]]
    result = function(*values, **named)
    if not marks or not isinstance(result, str) or any(result is value for value in values):
        return result
    return _marked(result) if name in _EXACT else MessageText(result)


def _percent(pattern: str, values: tuple[Any, ...], operand: Any) -> str:
    """`pattern % operand`, with the marks of messages."""
    if isinstance(pattern, MessageText) or isinstance(operand, Mapping):
        text = str.__mod__(pattern, operand)
        return MessageText(text) if message_text.has_marks([pattern, operand]) else text
    exact = "%" not in pattern.replace("%s", "").replace("%d", "").replace("%%", "")
    return message_text.formatted(lambda *held: str.__mod__(pattern, held), values, {}, exact)


def _marked(text: str) -> str:
    return text if type(text) is MessageText else MessageText(text)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    limits.require(len(pattern), 256)
    limits.check_format(pattern)
    return datetime.now().strftime(pattern)
