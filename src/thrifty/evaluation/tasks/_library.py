"""Python's standard library as something to read: its functions, with what their documentation says in a line.

They are read where Python is installed, so another version of Python has some other functions, and an item's identity
tells them apart. Nothing of them is imported or run.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "ast calendar colorsys copy difflib fnmatch functools glob gettext heapq html/__init__ inspect keyword locale "
    "operator posixpath random shlex shutil statistics string tempfile textwrap tokenize types urllib/parse uuid "
    "warnings"
)
LINES = range(3, 22)  # of a function without its documentation
LONGEST = 520  # characters of such a function, about 130 tokens
QUOTES = ('"""', "'''", "```")  # of texts that a repetition would stumble over
WORDY = 1500  # characters of documentation: who has more is left out


@dataclass(frozen=True)
class Function:
    """name: with its module, such as `textwrap.dedent`. header: name and parameters. summary: the first sentence of its
    documentation. documentation: all of it. code: its source without that. defaults: parameters and their defaults, as
    written.
    """

    name: str
    header: str
    summary: str
    documentation: str
    code: str
    defaults: tuple[tuple[str, str], ...]

    @property
    def short(self) -> bool:
        """Whether a model can be asked to repeat it."""
        lines = self.code.splitlines()
        return len(lines) in LINES and len(self.code) <= LONGEST and not any(quotes in self.code for quotes in QUOTES)


@functools.cache
def functions() -> tuple[Function, ...]:
    """The documented public functions of some modules, in the order of these and of their sources; none of two with
    one summary. Raises TaskError where the library's sources are not installed.
    """
    from thrifty.evaluation.tasks import TaskError

    root = Path(sysconfig.get_path("stdlib"))
    by_summary: dict[str, Function] = {}
    for module in MODULES.split():
        path = root / f"{module}.py"
        try:
            source = path.read_text(encoding="utf-8")
        except OSError as error:
            raise TaskError(
                f"this task reads the sources of Python's standard library, and '{path}' cannot be read "
                f"({error.strerror}); use a Python that is installed with its sources"
            ) from error
        for function in _documented(module.removesuffix("/__init__").replace("/", "."), source):
            by_summary.setdefault(function.summary, function)
    return tuple(by_summary.values())


def _documented(module: str, source: str) -> Iterator[Function]:
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
            continue
        documentation = ast.get_docstring(node)
        summary = _summary(documentation or "")
        if documentation is None or summary is None or len(documentation) > WORDY or len(node.body) < 2:
            continue
        first = node.body[0]
        assert first.end_lineno is not None and node.end_lineno is not None
        kept = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
        header = f"{module}.{node.name}({ast.unparse(node.args)})"
        code = "\n".join(line for line in kept if line.strip())
        yield Function(f"{module}.{node.name}", header, summary, documentation, code, tuple(_defaults(node.args)))


def _summary(documentation: str) -> str | None:
    """The first sentence, if it is one of at least four words."""
    paragraph = " ".join(documentation.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\w[.])\s", paragraph)[0]
    return sentence if len(sentence.split()) >= 4 and sentence.endswith(".") and len(sentence) <= 160 else None


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, str]]:
    """Parameters with a default that nobody guesses: numbers and words, not True, False and None."""
    behind = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    named = zip([*behind, *arguments.kwonlyargs], [*arguments.defaults, *arguments.kw_defaults], strict=True)
    for parameter, default in named:
        value = default.value if isinstance(default, ast.Constant) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield parameter.arg, repr(value)
        elif isinstance(value, str) and value.isidentifier():
            yield parameter.arg, value
