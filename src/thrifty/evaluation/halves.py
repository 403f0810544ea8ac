"""Tuning apart from judging: every item of a task belongs to one of two halves; nothing is chosen on the judged one.

Defaults, thresholds and choices of tasks may be looked for on the tuning half. What a page or a verdict shows comes
from the judged half, whose contexts, keys, templates and problems the tuning half never holds.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Half = Literal["tuning", "judged"]

ITEMS = 2
"""The version of how items are made: records of items that were made otherwise are not continued."""


def half_of(name: str) -> Half:
    """The half of a template, problem or question, by the SHA-256 of its name: it stays where it is when others come
    or go. About as many belong to either.
    """
    return "judged" if hashlib.sha256(name.encode()).digest()[0] % 2 else "tuning"
