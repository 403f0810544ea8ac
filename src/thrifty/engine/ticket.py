"""What a request becomes once it has passed its checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.decoding.sampling import Sampler
from thrifty.engine.drafting.drafting import Drafting
from thrifty.engine.request import Request

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy


@dataclass(frozen=True)
class Ticket:
    """A request that passed: its techniques, the longest answer it may give, and its sampler."""

    request: Request
    policies: tuple[CachePolicy, ...]
    drafting: Drafting
    maximum_tokens: int
    sampler: Sampler
