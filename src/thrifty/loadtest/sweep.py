"""Where a server saturates: its capacity with many requests at a time, then rates below and above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.loadtest.errors import LoadError

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25)
"""Of the capacity: the rates of a sweep that names none."""

KEPT = 0.9
"""Share of what is offered that a server must serve to keep up."""


def parse_rates(text: str) -> tuple[float, ...] | None:
    """Requests a second from "0.5,1,2"; None for "auto". Raises LoadError naming the part."""
    if text.strip() == "auto":
        return None
    rates = []
    for part in text.split(","):
        try:
            rates.append(float(part))
        except ValueError as error:
            raise LoadError(f"{part.strip()!r} is no rate; write e.g. 0.5,1,2, or auto") from error
        if not 0 < rates[-1] < float("inf"):
            raise LoadError(f"{part.strip()!r} is no rate: it must be more than 0")
    return tuple(sorted(set(rates)))


def rates_around(capacity: float) -> tuple[float, ...]:
    """The rates to try for a server that answers so many requests a second when it is never idle."""
    if not capacity > 0:
        raise LoadError("no request was answered, so there is no capacity to try rates around; see the errors above")
    return tuple(float(f"{share * capacity:.3g}") for share in SHARES)


def kept_up(run: dict[str, Any]) -> bool:
    """Whether a run (its figures, with `request_rate`) was served as it came. With objectives: 90 % of its requests
    were good. Without: 90 % were answered, and at 90 % of the rate at which they came.
    """
    sent = run["completed"] + run["failed"]
    if run["request_goodput"] is not None:
        return bool(sent) and run["request_goodput"] * run["duration"] >= KEPT * sent
    answering = run["duration"] - run["mean_e2el_ms"] / 1e3  # the last answer takes its time in any case
    return bool(sent) and run["completed"] >= KEPT * sent and answering <= sent / run["request_rate"] / KEPT


def saturation(runs: Sequence[dict[str, Any]]) -> float | None:
    """The highest rate that was kept up, with all lower ones; None where the lowest was not."""
    best = None
    for run in sorted(runs, key=lambda run: float(run["request_rate"])):
        if not kept_up(run):
            break
        best = float(run["request_rate"])
    return best
