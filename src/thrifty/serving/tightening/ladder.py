"""What an operator lets a server do while it is short: cache recipes from mild to strong, and when each is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.errors import ThriftyError


class LadderError(ThriftyError):
    """A ladder of recipes cannot be as it was asked for; the message says what to change."""


Tables = tuple[dict[str, Any], ...]
"""A recipe's cache tables."""

RELAXED = 0.25
"""Of the share that is not asked for, this part must be free too before a rung is left."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Cache recipes for new requests that bring none of their own. The times keep it from going to and fro."""

    #: Mildest first.
    rungs: tuple[Tables, ...]
    #: How many of them may be used: the bound on quality.
    limit: int
    #: The server is short where less than this share (0 to 1) of the memory for requests is free.
    free_share: float = 0.1
    #: It is short where a request waits longer for its admission, in seconds; None: waiting does not count.
    wait_seconds: float | None = None
    #: Seconds between two steps up, in which the last one may show.
    settle_seconds: float = 2.0
    #: Seconds in which nothing was short before a step down.
    calm_seconds: float = 15.0

    def check(self) -> None:
        """Raise LadderError for what cannot be."""
        if not self.rungs:
            raise LadderError("no recipe is given to tighten with; give --tighten RECIPE, mildest first")
        if not 1 <= self.limit <= len(self.rungs):
            raise LadderError(
                f"--tighten-limit is {self.limit}; it counts the recipes of --tighten that may be used: "
                f"give 1 to {len(self.rungs)}"
            )
        if not 0 < self.free_share < 1:
            raise LadderError(f"--tighten-below is {self.free_share:g}; give a share above 0 and below 1, such as 0.1")
        if self.wait_seconds is not None and not self.wait_seconds > 0:
            raise LadderError(f"--tighten-wait is {self.wait_seconds:g}; give seconds above 0, or leave it out")

    @property
    def relaxed_share(self) -> float:
        """The free share at which nothing is short any more."""
        return self.free_share + RELAXED * (1 - self.free_share)
