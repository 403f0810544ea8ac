"""The card of a technique: what it is, which paper, and what the paper claims."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Card:
    """Data about one published method, shown by `thrifty techniques` and checked against measurements.

    title: the paper's title. paper: an arXiv id, DOI or citation. year: of first publication.
    mechanism: one sentence. claim: the paper's headline claim as a figure, with its setting.
    limits: what the method does not do, or where this implementation departs from the paper.
    """

    title: str
    paper: str
    year: int
    mechanism: str
    claim: str
    limits: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("title", "paper", "mechanism", "claim"):
            if not getattr(self, name).strip():
                raise ValueError(f"Card.{name} is empty: every card says {name}")

    def as_dict(self) -> dict[str, Any]:
        """The card as plain JSON-ready values."""
        return asdict(self) | {"limits": list(self.limits)}
