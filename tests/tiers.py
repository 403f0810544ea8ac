"""What a test of `make unit` may take: such a test is quick, or says by a mark that it is not."""

from __future__ import annotations

from collections.abc import Iterable

MARKS = frozenset(("long", "model", "slow", "clients"))
"""What `make unit` leaves out."""
MOST = 10.0
"""Seconds of CPU, several times what any unmarked test takes on a busy machine: `make unit` has 180 for all of them."""


def too_long(marks: Iterable[str], seconds: float) -> str | None:
    """Why a test with these marks may not take `seconds` of CPU; None where it may."""
    if seconds <= MOST or MARKS & frozenset(marks):
        return None
    return (
        f"this test took {seconds:.1f} s of CPU; one without a mark takes at most {MOST:.0f}, for `make unit` runs it: "
        "make it cheaper, or mark it `long`"
    )
