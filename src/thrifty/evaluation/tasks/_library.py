"""Python's standard library as something to read: its functions, with what their documentation says in a line.

They are read where Python is installed, so another version of Python has some other functions, and an item's identity
tells them apart. Nothing of them is imported or run.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "ast calendar codecs colorsys compileall contextlib copy difflib dis email/utils filecmp fileinput fnmatch "
    "functools gettext glob heapq html/__init__ inspect json/__init__ keyword locale logging/__init__ mimetypes os "
    "pkgutil platform posixpath pprint py_compile quopri random re/__init__ runpy shlex shutil socket statistics "
    "string tempfile textwrap timeit tokenize traceback tracemalloc types urllib/parse urllib/request uuid warnings "
    "webbrowser"
)
LINES = range(3, 22)  # of a function without its documentation
LONGEST = 520  # characters of such a function, about 130 tokens
QUOTES = ('"""', "'''", "```")  # of texts that a repetition would stumble over
FILLER = 600  # characters of a function that fills a context
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


def functions() -> tuple[Function, ...]:
    """The documented public functions of some modules, in the order of these and of their sources; none of two with
    one summary. Raises TaskError where the library's sources are not installed.
    """
    return _read()[0]


def other_code() -> tuple[tuple[str, str], ...]:
    """(name without its module, source without documentation) of the same modules' other functions and of methods; no
    name twice. Raises as `functions`.
    """
    return _read()[1]


@functools.cache
def _read() -> tuple[tuple[Function, ...], tuple[tuple[str, str], ...]]:
    by_summary: dict[str, Function] = {}
    codes: dict[str, str] = {}
    for module, source in _sources():
        lines, tree = source.splitlines(), ast.parse(source)
        for function in _documented(module, lines, tree):
            by_summary.setdefault(function.summary, function)
        codes = dict(_every(lines, tree)) | codes
    documented = {function.name.rpartition(".")[2] for function in by_summary.values()}
    others = tuple((name, code) for name, code in codes.items() if name not in documented)
    return tuple(by_summary.values()), others


def _sources() -> Iterator[tuple[str, str]]:
    """(module, its source)."""
    from thrifty.evaluation.tasks import TaskError

    root = Path(sysconfig.get_path("stdlib"))
    for module in MODULES.split():
        path = root / f"{module}.py"
        try:
            source = path.read_text(encoding="utf-8")
        except OSError as error:
            raise TaskError(
                f"this task reads the sources of Python's standard library, and '{path}' cannot be read "
                f"({error.strerror}); use a Python that is installed with its sources"
            ) from error
        yield module.removesuffix("/__init__").replace("/", "."), source


def _every(lines: Sequence[str], tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, source) of all functions and methods that are neither tiny nor long."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            code = textwrap.dedent(_code(lines, node))
            if len(code.splitlines()) >= LINES.start and len(code) <= FILLER:
                yield node.name, code


def _documented(module: str, lines: Sequence[str], tree: ast.Module) -> Iterator[Function]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
            continue
        documentation = ast.get_docstring(node)
        summary = _summary(documentation or "")
        if documentation is None or summary is None or len(documentation) > WORDY or len(node.body) < 2:
            continue
        header = f"{module}.{node.name}({ast.unparse(node.args)})"
        defaults = tuple(_defaults(node.args))
        yield Function(f"{module}.{node.name}", header, summary, documentation, _code(lines, node), defaults)


def _code(lines: Sequence[str], node: ast.FunctionDef) -> str:
    """The source of a function without its documentation and empty lines. lines: of its module."""
    kept = lines[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        kept = [*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno : node.end_lineno]]
    return "\n".join(line for line in kept if line.strip())


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
