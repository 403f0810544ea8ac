"""What a request becomes once it has passed its checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.decoding.sampling import Sampler
from thrifty.engine.drafting.drafting import Drafting
from thrifty.engine.drafting.models import uses_adapter
from thrifty.engine.request import Request
from thrifty.engine.row_extra import RowExtra

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.prompt.reading import PromptReading


@dataclass(frozen=True)
class Ticket:
    """A request that passed: its techniques, the longest answer it may give, and its sampler. extra: what its rows are
    beyond plain tokens, whichever they are. reading: the programs that look at its prompt first, None where none does.
    """

    request: Request
    policies: tuple[CachePolicy, ...]
    drafting: Drafting
    maximum_tokens: int
    sampler: Sampler
    extra: RowExtra | None = None
    reading: PromptReading | None = None

    def uses_adapter(self, name: str) -> bool:
        """Whether the request, or a model that drafts for it, runs with an adapter of the engine."""
        return self.request.adapter == name or any(uses_adapter(draft, name) for draft in self.drafting.models)
