"""What a result belongs to: the commit, the package's source, and a technique with its claim."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import thrifty
from thrifty import claims, registry
from thrifty.version import VERSION

SUFFIXES = (".py", ".toml", ".txt", ".so", ".pyd", ".dylib")
PACKAGE = Path(str(thrifty.__file__)).parent
MEASURING = (
    "claims/harness/context.py",
    "claims/harness/controls.py",
    "claims/harness/parts.py",
    "claims/harness/reading.py",
    "claims/harness/scores/items.py",
    "claims/harness/scores/passages.py",
    "claims/harness/scores/timing.py",
    "evaluation/paired.py",
)
"""What all claims measure and compare with, in the package."""
PROMPTING = "claims/harness/prompting.py"
"""What claims about prompt programs measure with beside it."""


@dataclass(frozen=True)
class Commit:
    """name: the commit's hash where the package lies in its repository, else its version. dirty: whether the package
    differs from it.
    """

    name: str
    dirty: bool


def commit(package: Path = PACKAGE) -> Commit:
    """The commit that a package's folder is of; its version where git does not know the folder."""
    if _git(package, "ls-files", "--error-unmatch", "version.py") is None:
        return Commit(VERSION, False)
    name = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return Commit(VERSION, False) if name is None or changed is None else Commit(name[:12], bool(changed))


@functools.cache
def source(package: Path = PACKAGE) -> str:
    """A hash of all code and data of the package: results of another state of it are not gone on with."""
    return _hash((path.relative_to(package).as_posix(), path.read_bytes()) for path in _files(package))


def code(name: str) -> str:
    """A hash of a technique's file, its options' defaults and its claim's file: what a row is a result of."""
    modules = registry.found(claims.__path__)
    parts = [("claim", _read(f"{claims.__name__}.{modules[name]}"))] if name in modules else []
    for stage in registry.STAGES:
        if name in registry.names(stage):
            parts += _technique(stage, name)
    return _hash(parts)[:16]


def beside(tables: Iterable[str]) -> str:
    """A hash of what else a row's figures come from: the techniques of prompt and cache that ran, rivals and controls
    too, with their defaults, and what measures and compares. tables: as `Run.tables` has them, the text of a list each.
    """
    ran = {table["technique"] for text in tables for table in ast.literal_eval(text)}
    known = [(stage, name) for stage in ("cache", "prompt") for name in sorted(ran & set(registry.names(stage)))]
    parts = [part for stage, name in known for part in _technique(stage, name)]
    parts += [("prompting", (PACKAGE / PROMPTING).read_bytes())] if any(stage == "prompt" for stage, _ in known) else []
    parts += [(name, (PACKAGE / name).read_bytes()) for name in MEASURING]
    return _hash(parts)[:16]


def _technique(stage: str, name: str) -> list[tuple[str, bytes]]:
    """A technique's file and its options' defaults."""
    file = inspect.getsourcefile(registry.load(stage, name))
    options = registry.describe(stage, name)["options"]
    return [
        (stage, Path(str(file)).read_bytes()),
        ("options", json.dumps(options, sort_keys=True, default=str).encode()),
    ]


def _read(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, "a claim is a file"
    return Path(spec.origin).read_bytes()


def _files(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def _hash(parts: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder; None where there is no git or it knows nothing of it."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
