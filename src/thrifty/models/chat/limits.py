"""What a chat template may make: how large one value may become, checked before it is made wherever it can grow.

Every check raises TemplateError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import Any

from thrifty.errors import TemplateError

MAX_ITEMS = 1 << 18  # of a list or object that a template makes, nested ones counted as often as they appear
MAX_OUTPUT = 1 << 23  # characters of a text that a template makes, or of all texts in a list together
MAX_BITS = 4096  # of an integer
MAX_INDENT = 64
NUMBER = 24  # characters that a number or another plain value may need

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_VIEWS = (KeysView, ValuesView, ItemsView)


def require(size: int, limit: int = MAX_ITEMS) -> None:
    """Raise TemplateError where a size is beyond its bound."""
    if size > limit:
        raise TemplateError(f"The chat template makes a value of {size} characters or items; {limit} are allowed.")


def extent(value: Any) -> int:
    """Characters of a value, about, if it were written out. Raises TemplateError where it is too large."""
    items, characters, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            characters += len(item)
        elif isinstance(item, (list, tuple, set, frozenset, Mapping, *_VIEWS)):
            items += len(item) + 1
            require(items)
            waiting.extend((*item.keys(), *item.values()) if isinstance(item, Mapping) else item)
        elif isinstance(item, int):
            _require_bits(item.bit_length())
            characters += item.bit_length() // 3 + 1
        else:
            characters += NUMBER
        require(characters, MAX_OUTPUT)
    return characters


def measured(value: Any) -> Any:
    """The value itself. Raises TemplateError where it is too large, counted as if it were written out."""
    extent(value)
    return value


def listed(value: Any) -> Any:
    """Iterators and ranges as lists, so that they can be measured; all else as it is."""
    if not hasattr(value, "__next__") and not isinstance(value, range):
        return value
    items = []
    for item in value:
        items.append(item)
        require(len(items))
    return items


def bounded_range(*bounds: int) -> range:
    """Python's range, of at most MAX_ITEMS numbers of at most 64 bits."""
    if any(isinstance(bound, int) and bound.bit_length() > 63 for bound in bounds):
        raise TemplateError("The chat template asks for a range beyond 64 bits.")
    values = range(*bounds)
    require(len(values))
    return values


def json_text(
    keep: Callable[[str], str],
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which would change prompts. keep: is given every part."""
    _check_indent(value, indent or 0)
    if separators is not None and sum(len(str(part)) for part in separators) > MAX_INDENT:
        raise TemplateError("The chat template asks for JSON separators that are too long.")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts, length = [], 0
    for part in encoder.iterencode(value):
        length += len(part)
        require(length, MAX_OUTPUT)
        parts.append(keep(part))
    return "".join(parts)


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before a binary operator is carried out."""
    if operator in _OPERATORS:
        _OPERATORS[operator](left, right)


def check_filter(name: str, *values: Any, **named: Any) -> None:
    """Before a filter is applied to values."""
    if name in _GROWING:
        _GROWING[name](*values, **named)
    if name in _ITERATING and values and isinstance(values[0], str):
        require(len(values[0]))


def check_format(pattern: Any, *values: Any, **named: Any) -> None:
    """`pattern % values`: no widths beyond a bound, none from values, and no large value many times over."""
    if not isinstance(pattern, str):
        return
    width = ""
    for character in f"{pattern} ":
        width = width + character if character.isdigit() else ""
        if len(width) > 3 or (character == "*" and "%" in pattern):
            raise TemplateError("The chat template asks for a width in a format that is too large or not fixed.")
    require(len(pattern) + pattern.count("%") * (extent([*values, *named.values()]) + 1000), MAX_OUTPUT)


def check_braces(pattern: str, *values: Any, **named: Any) -> None:
    """`str.format` with plain fields only: a width or precision could ask for any size."""
    if re.search(r"\{[^}]*[:!]", pattern):
        raise TemplateError("The chat template uses str.format with a width or conversion, which is not allowed.")
    require(len(pattern) + pattern.count("{") * (extent([*values, *named.values()]) + 1000), MAX_OUTPUT)


def method_arguments(text: str, name: str, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Checked arguments of a string's method; those that cut a text into pieces get a bound on their number."""
    if name == "join":
        values = (listed(*values),)
        _check_join(values[0], text)
    elif name == "replace":
        require(_replaced(text, *values[:2], **named), MAX_OUTPUT)
    elif name == "splitlines":
        require(sum(text.count(end) for end in _LINE_ENDS))
    elif name in ("split", "rsplit"):
        most = named.pop("maxsplit", values[1] if len(values) > 1 else -1)
        separator = named.pop("sep", values[0] if values else None)
        bound = min(most, MAX_ITEMS) if isinstance(most, int) and most >= 0 else MAX_ITEMS
        return (separator, bound)
    return values


def count_words(text: Any) -> int:
    """The filter `wordcount`, without a list of the words."""
    return sum(1 for _ in re.finditer(r"\w+", str(text)))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _require_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateError(f"The chat template makes a number of more than {MAX_BITS} bits.")


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int):
            limit = MAX_OUTPUT if isinstance(value, (str, bytes)) else MAX_ITEMS
            require(_size(value) * max(times, 0), limit)
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() * max(right, 0))


def _check_sum(left: Any, right: Any) -> None:
    require(_size(left) + _size(right), MAX_OUTPUT)
    if isinstance(left, (list, tuple)):
        measured((left, right))


def _check_indent(value: Any, width: Any = 4, *rest: Any, **named: Any) -> None:
    size = len(width) if isinstance(width, str) else width
    if not isinstance(size, int) or size > MAX_INDENT:
        raise TemplateError(f"The chat template indents by {size!r:.20}; {MAX_INDENT} is the most.")
    if isinstance(value, str):
        lines = sum(value.count(end) for end in _LINE_ENDS)
        require(lines)
        require(len(value) + size * lines, MAX_OUTPUT)


def _check_round(value: Any, precision: Any = 0, *rest: Any, **named: Any) -> None:
    if not isinstance(precision, int) or abs(precision) > MAX_INDENT:
        raise TemplateError(f"The chat template rounds to {precision!r:.20} digits; {MAX_INDENT} is the most.")


def _check_replace(text: Any, old: Any = "", new: Any = "", *rest: Any, **named: Any) -> None:
    require(_replaced(str(text), named.get("old", old), named.get("new", new)), MAX_OUTPUT)


def _replaced(text: str, old: Any = "", new: Any = "", *rest: Any, **named: Any) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * len(new)


def _check_join(items: Any, separator: Any = "", *rest: Any, **named: Any) -> None:
    count = len(items) if isinstance(items, (list, tuple, str, Mapping, set, frozenset, *_VIEWS)) else 0
    require(extent(items) + len(str(named.get("d", separator))) * count, MAX_OUTPUT)


def _check_sum_of(items: Any, *rest: Any, **named: Any) -> None:
    if isinstance(named.get("start", rest[1] if len(rest) > 1 else 0), (list, tuple, str)):
        raise TemplateError("The chat template sums lists; use the operator + instead.")


def _check_escaped(text: Any, *rest: Any, **named: Any) -> None:
    require(5 * _size(text), MAX_OUTPUT)


_OPERATORS: Mapping[str, Callable[[Any, Any], None]] = {
    "*": _check_product,
    "**": _check_power,
    "+": _check_sum,
    "%": check_format,
}
_GROWING: Mapping[str, Callable[..., None]] = {
    "e": _check_escaped,
    "escape": _check_escaped,
    "format": check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "sum": _check_sum_of,
    "urlencode": _check_escaped,
}
_ITERATING = frozenset(
    ("join", "list", "map", "reject", "select", "sort", "title", "unique")
)  # make lists of characters
