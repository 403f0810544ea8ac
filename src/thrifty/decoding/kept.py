"""What a strategy has its engine keep from one answer to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol


class Kept(Protocol):
    """Something that drafters of requests of one salt share. It may be closed while drafters use it: they find nothing
    in it then.
    """

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, as many as when it was made, until it is closed."""
        ...

    def close(self) -> None:
        """Give its bytes back."""
        ...


@dataclass(frozen=True)
class Keeps:
    """What a strategy wants kept. key: there is one of each key a salt. nbytes: what it will hold. make: makes it."""

    key: Hashable
    nbytes: int
    make: Callable[[], Kept]
