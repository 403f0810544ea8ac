"""The sandbox of chat templates: Jinja's immutable one, and bounds on what a template can make and how long it runs.

Jinja keeps a template from Python's internals, but not from `"a" * 10**10` or from doubling a value forty times. Here
every value that a template makes (by an operator, a literal, a call, a filter, a block) is measured before or as it is
made, and the clock is looked at in every one of these steps and at the start of every loop.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from datetime import datetime
from threading import local
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from thrifty.errors import TemplateError

MAX_ITEMS = 1 << 18  # of a list or object that a template makes, nested ones counted as often as they appear
MAX_OUTPUT = 1 << 24  # characters of a text that a template makes, or of all texts in a list together
MAX_SECONDS = 10.0  # of the thread's own time
MAX_BITS = 4096  # of an integer
MAX_INDENT = 64


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXT_METHODS = _names(
    """
    startswith endswith strip lstrip rstrip split rsplit splitlines upper lower title capitalize swapcase casefold
    replace join find rfind index rindex count isdigit isdecimal isnumeric isalpha isalnum isspace isupper islower
    istitle isascii partition rpartition removeprefix removesuffix
    """
)
_FILTERS = _names(
    """
    abs capitalize count d default dictsort e escape first float format indent int items join last length list
    lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson
    trim truncate unique upper urlencode wordcount
    """
)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template. `begin` starts the clock of a rendering in this thread.

    Raises TemplateError for what goes beyond a bound, jinja2's SecurityError for what leaves the sandbox.
    """

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.code_generator_class = _Generator
        self.concat = self._concat  # type: ignore[method-assign]
        self.finalize = _finalize
        self._clock = local()
        self.filters = {name: self._guarded(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._guarded("tojson", to_json)
        self.filters["_loop"] = self._loop
        self.globals = {
            "range": _range,
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.begin()

    def begin(self) -> None:
        """Start the clock of a rendering."""
        self._clock.end = time.thread_time() + MAX_SECONDS

    def tick(self) -> None:
        """Raise TemplateError where the rendering takes too long."""
        if time.thread_time() > getattr(self._clock, "end", float("inf")):
            raise TemplateError(f"The chat template runs for more than {MAX_SECONDS:g} seconds.")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes)) and attr not in _TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__!r} is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        return None if wrapper is None else functools.partial(_format_braces, value.__self__, wrapper)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        _OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "join":
            args = (_listed(*args),)
            require(_joined(owner, args[0]), MAX_OUTPUT)
        elif isinstance(owner, str) and name == "replace":
            require(_replaced(owner, *args[:2], **kwargs), MAX_OUTPUT)
        elif isinstance(function, LoopContext):
            args = tuple(_listed(argument) for argument in args)
        return measured(super().call(context, function, *args, **kwargs))

    def made(self, value: Any) -> Any:
        """Called by compiled templates for every list, tuple and dictionary that they write out."""
        self.tick()
        return measured(value)

    def joined(self, values: tuple[Any, ...]) -> str:
        """Called by compiled templates for the operator `~`."""
        self.tick()
        return "".join(map(str, measured(values)))

    def _concat(self, parts: Iterable[str]) -> str:
        """Called by compiled templates for what a block or macro has written."""
        self.tick()
        texts = list(parts)
        require(sum(map(len, texts)), MAX_OUTPUT)
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_loop", [], [], None, None)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateError(f"The chat template reads another file (line {node.lineno}), which is not allowed.")
        return tree

    def _loop(self, values: Any) -> Any:
        """What a loop runs over: the clock is looked at when it begins, and for generators in every pass."""
        self.tick()
        return values if isinstance(values, Sized) else self._passes(values)

    def _passes(self, values: Iterable[Any]) -> Iterable[Any]:
        for value in values:
            self.tick()
            yield value

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            start = 1 if hasattr(function, "jinja_pass_arg") else 0
            values = [_listed(value) for value in args[start:]]
            if name in _GROWING:
                _GROWING[name](*values, **kwargs)
            return measured(function(*args[:start], *values, **kwargs))

        run.__dict__.pop("jinja_async_variant", None)
        return run


class _Generator(CodeGenerator):
    """Sends what makes values through the environment's measures."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._measured(super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._measured(super().visit_Dict, node, frame)

    def _measured(self, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is simply written."""

    tags = {"generation"}  # noqa: RUF012  # read by Jinja as a class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace without hidden names, whose text does not grow with what it holds."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def require(size: int, limit: int = MAX_ITEMS) -> None:
    """Raise TemplateError where a size is beyond its bound."""
    if size > limit:
        raise TemplateError(f"The chat template makes a value of {size} characters or items; {limit} are allowed.")


def measured(value: Any) -> Any:
    """The value itself. Raises TemplateError where it is too large, counted as if it were written out."""
    items, characters, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            characters += len(item)
            require(characters, MAX_OUTPUT)
        elif isinstance(item, (list, tuple, set, frozenset, Mapping)):
            items += len(item) + 1
            require(items)
            waiting.extend((*item.keys(), *item.values()) if isinstance(item, Mapping) else item)
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise TemplateError(f"The chat template makes a number of more than {MAX_BITS} bits.")
    return value


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which would change prompts."""
    _check_indent(value, indent or 0)
    if separators is not None and sum(len(str(part)) for part in separators) > MAX_INDENT:
        raise TemplateError("The chat template asks for JSON separators that are too long.")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, length = [], 0
    for part in encoder.iterencode(value):
        length += len(part)
        require(length, MAX_OUTPUT)
        parts.append(part)
    return "".join(parts)


def _finalize(value: Any) -> Any:
    return value if isinstance(value, str) else measured(value)


def _listed(value: Any) -> Any:
    """Iterators as lists, so that they can be measured; all else as it is."""
    if hasattr(value, "__next__"):
        items = []
        for item in value:
            items.append(item)
            require(len(items))
        return items
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int):
            limit = MAX_OUTPUT if isinstance(value, (str, bytes)) else MAX_ITEMS
            require(_size(value) * max(times, 0), limit)
    _check_bits(left, right, lambda a, b: a.bit_length() + b.bit_length())


def _check_power(left: Any, right: Any) -> None:
    _check_bits(left, right, lambda a, b: a.bit_length() * max(b, 0))


def _check_sum(left: Any, right: Any) -> None:
    require(_size(left) + _size(right), MAX_OUTPUT)
    if isinstance(left, (list, tuple)):
        measured((left, right))


def _check_bits(left: Any, right: Any, bits: Callable[[int, int], int]) -> None:
    if isinstance(left, int) and isinstance(right, int) and bits(left, right) > MAX_BITS:
        raise TemplateError(f"The chat template makes a number of more than {MAX_BITS} bits.")


def _check_format(pattern: Any, *values: Any, **named: Any) -> None:
    """`pattern % values`: no widths beyond a bound, none from values, and no large value many times over."""
    if not isinstance(pattern, str):
        return
    width = ""
    for character in f"{pattern} ":
        width = width + character if character.isdigit() else ""
        if len(width) > 3 or (character == "*" and "%" in pattern):
            raise TemplateError("The chat template asks for a width in a format that is too large or not fixed.")
    sizes = sum(_size(value) for value in _flat([*values, *named.values()]))
    require(len(pattern) + pattern.count("%") * (sizes + 1000), MAX_OUTPUT)


def _format_braces(pattern: str, wrapper: Callable[..., str], /, *args: Any, **kwargs: Any) -> str:
    """`str.format` with plain fields only: a width or precision could ask for any size."""
    if re.search(r"\{[^}]*[:!]", pattern):
        raise TemplateError("The chat template uses str.format with a width or conversion, which is not allowed.")
    sizes = sum(_size(value) for value in _flat([*args, *kwargs.values()]))
    require(len(pattern) + pattern.count("{") * (sizes + 1000), MAX_OUTPUT)
    return wrapper(*args, **kwargs)


def _flat(values: list[Any]) -> list[Any]:
    measured(values)
    found, waiting = [], list(values)
    while waiting:
        value = waiting.pop()
        found.append(value)
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
    return found


def _check_indent(value: Any, width: Any = 4, *rest: Any, **named: Any) -> None:
    size = len(width) if isinstance(width, str) else width
    if not isinstance(size, int) or size > MAX_INDENT:
        raise TemplateError(f"The chat template indents by {size!r:.20}; {MAX_INDENT} is the most.")
    if isinstance(value, str):
        require(len(value) + size * value.count("\n"), MAX_OUTPUT)


def _check_round(value: Any, precision: Any = 0, *rest: Any, **named: Any) -> None:
    if not isinstance(precision, int) or abs(precision) > MAX_INDENT:
        raise TemplateError(f"The chat template rounds to {precision!r:.20} digits; {MAX_INDENT} is the most.")


def _check_replace(text: Any, old: Any = "", new: Any = "", *rest: Any, **named: Any) -> None:
    require(_replaced(str(text), named.get("old", old), named.get("new", new)), MAX_OUTPUT)


def _replaced(text: str, old: Any = "", new: Any = "", **named: Any) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * len(new)


def _check_join(items: Any, separator: Any = "", *rest: Any, **named: Any) -> None:
    require(_joined(str(named.get("d", separator)), items), MAX_OUTPUT)


def _joined(separator: str, items: Any = ()) -> int:
    if not isinstance(items, (list, tuple, str)):
        return 0
    return sum(_size(item) for item in items) + len(separator) * len(items)


def _check_sum_of(items: Any, *rest: Any, **named: Any) -> None:
    if isinstance(named.get("start", rest[1] if len(rest) > 1 else 0), (list, tuple, str)):
        raise TemplateError("The chat template sums lists; use the operator + instead.")


_OPERATORS: Mapping[str, Callable[[Any, Any], None]] = {
    "*": _check_product,
    "**": _check_power,
    "+": _check_sum,
    "%": _check_format,
}
_GROWING: Mapping[str, Callable[..., None]] = {
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "sum": _check_sum_of,
}


def _range(*bounds: int) -> range:
    values = range(*bounds)
    require((values.stop - values.start) // values.step if len(bounds) else 0)
    return values


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    require(len(pattern), 256)
    _check_format(pattern)
    return datetime.now().strftime(pattern)
