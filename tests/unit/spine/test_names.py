"""No name of a module or a class is assigned twice: the first value would be lost without a word."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("src", "tests", "benchmarks", "training", "docs")


def assigned_twice(source: str) -> list[str]:
    """Names that one block of a module or class (a function's own aside) binds more than once by `=`, with where."""
    found = []
    for block in _blocks(ast.parse(source)):
        names = Counter(name for statement in block for name in _bound(statement))
        found += [f"{name} in the block of line {block[0].lineno}" for name, times in names.items() if times > 1]
    return found


def _blocks(tree: ast.Module) -> Iterator[Sequence[ast.stmt]]:
    """The statements of the module, of its classes, and of the branches of both, which stand for one another."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                yield block
                waiting += [one for one in block if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        waiting += getattr(node, "handlers", [])


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name) and _stored(node))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        yield statement.target.id
    elif isinstance(statement, ast.ClassDef):
        yield statement.name


def _stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def test_no_name_is_assigned_twice() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300, "the folders were found"
    twice = [f"{path.relative_to(ROOT)}: {name}" for path in files for name in assigned_twice(path.read_text())]
    assert not twice, "\n".join(twice)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("A = [1]\nA += [2]\nA = [3]", ["A"]),
        ("A: int = 1\nB = 2\nA = 3", ["A"]),
        ("class C:\n    a = 1\n    a = 2", ["a"]),
        ("(A, B), *C = D\nC = 1", ["C"]),
        ("if x:\n    A = 1\n    A = 2", ["A"]),
        ("class C:\n    pass\nC = 1", ["C"]),
        ("A: int\nA = 1", []),
        ("if x:\n    A = 1\nelse:\n    A = 2", []),
        ("try:\n    import a\nexcept ImportError:\n    a = None", []),
        ("def f():\n    a = 1\n    a = 2", []),
        ("A = 1\nA.b = 2\nA[0] = 3\nB = A", []),
    ],
)
def test_what_counts_as_twice(source: str, names: list[str]) -> None:
    assert [name.split()[0] for name in assigned_twice(source)] == names
