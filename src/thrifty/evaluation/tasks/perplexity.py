"""Perplexity on prose after a compressed context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.evaluation.tasks._passages import Passages


@dataclass(frozen=True, kw_only=True)
class Perplexity(Passages):
    """Next-token accuracy is the score; the mean negative log-likelihood (nats) stands beside it as `nll`."""

    name: ClassVar[str] = "perplexity"
