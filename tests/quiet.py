"""A machine on which nothing else runs, as searches see it: tests run beside one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from thrifty.evaluation.measuring.noise import Noise


@contextmanager
def silence() -> Iterator[Noise]:
    """In the place of `noise.listening`."""
    yield Noise()


def make_quiet(patch: pytest.MonkeyPatch) -> None:
    """From now on a search takes every timing as undisturbed."""
    patch.setattr("thrifty.frontier.workshop.listening", silence)
