"""The errors a user can meet. Each message names the value, the limit and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThriftyError(Exception):
    """Base of every error that Thrifty raises on purpose; the command line prints it without a traceback."""


class ThriftyWarning(UserWarning):
    """Something was guessed or put right that the user should know of; the command line prints it as one line."""


class CheckpointError(ThriftyError):
    """A checkpoint, converted file or tokenizer file is missing, corrupt or hostile; the message names the field."""


class ConfigError(CheckpointError):
    """A model's configuration is invalid, or changes the numerics in a way that is not supported."""


class RecipeError(ThriftyError):
    """A recipe names an unknown technique or option, or a value that is out of range."""


class BudgetError(ThriftyError):
    """Something does not fit the memory budget; the message gives the number that would fit."""


class PromptError(ThriftyError):
    """A request cannot be served: its prompt, length or sampling parameters are out of range."""


class SessionError(PromptError):
    """A request cannot go on from the session that it names. code: "session_expired", "session_mismatch" or
    "session_busy"; for files of sessions "session_file".
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class QueueFullError(ThriftyError):
    """The engine's waiting queue is at its bound. `retry_after` is the suggested wait in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageError(ThriftyError):
    """A tier is out of room, or its file cannot be read or written."""


class TemplateError(ThriftyError):
    """A chat template is invalid, tries to leave the sandbox, or does not fit the messages."""


class KernelError(ThriftyError):
    """A kernel was called with shapes, types or layouts that it does not take."""


class MissingExtra(ThriftyError):
    """Something needs an optional dependency that is not installed; the message says how to install it."""


class DownloadError(ThriftyError):
    """A model could not be fetched; the message says what was tried and how to provide it by hand."""


LONGEST_NAME = 500
"""Characters of a wrong name that are compared: clients send what they like."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps after a wrong name: the nearest known one, or all of them.

    >>> nearest("kvii", ["kivi", "full"])
    "Did you mean 'kivi'? Known: full, kivi."
    """
    names = sorted(known)
    listing = f"Known: {', '.join(names)}." if names else "None are known."
    close = difflib.get_close_matches(name[:LONGEST_NAME], names, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'? {listing}" if close else listing
