"""What an optional dependency is needed for, and how to install it."""

from __future__ import annotations

import importlib.util

from thrifty.errors import MissingExtra


def require(module: str, extra: str, what: str) -> None:
    """Raise MissingExtra where the Python module is not installed. what: needs it, as a sentence begins."""
    if not is_there(module):
        raise MissingExtra(f"{what} needs {module}, which is not installed: pip install 'thrifty-engine[{extra}]'")


def is_there(module: str) -> bool:
    """Whether a Python module is installed; it is not imported, though the packages around it are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def require_torch(what: str) -> None:
    """Raise MissingExtra where torch is not installed."""
    require("torch", "torch", what)
