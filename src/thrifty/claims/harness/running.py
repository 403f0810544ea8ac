"""Running claims one after the other: what there is time for, each result kept as soon as it is there."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from thrifty import claims, registry
from thrifty.claims.harness import records
from thrifty.claims.harness.records import ClaimRow
from thrifty.errors import ThriftyError
from thrifty.evaluation.roofline.machine import cores, cpu_name

if TYPE_CHECKING:
    from thrifty.claims.harness.claim import Claim
    from thrifty.claims.harness.context import Context


def unclaimed() -> dict[str, str]:
    """Techniques that no claim checks, and their stages, in the order of the stages."""
    known = set(claims.names())
    return {name: stage for stage in registry.STAGES for name in registry.names(stage) if name not in known}


@dataclass
class Reproduction:
    """A run of claims. Iterate `rows`; what came before an interruption is kept.

    contexts: by the name of a model; who made it closes what it opened. page: where results go, the record beside it;
    None: nowhere.
    model: None for each claim's own. minutes: claims that would not end before are left out; None: no bound. left_out:
    for lack of time. failed: claims that could not be measured, with the reason.
    """

    contexts: Callable[[str], Context]
    names: Sequence[str]
    page: Path | None = None
    model: str | None = None
    minutes: float | None = None
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[ClaimRow]:
        """Run every claim that there is time for; where there is a page, its row is on disk when it is yielded."""
        started = time.monotonic()
        for name in self.names:
            claim = claims.load(name)
            if self.minutes is not None and (time.monotonic() - started) / 60 + claim.minutes > self.minutes:
                self.left_out.append(name)
                continue
            try:
                context = self.contexts(self.model or claim.model)
                context.say(f"{name} (about {claim.minutes:g} minutes on two quiet cores)")
                row = self._row(name, claim, context)
            except ThriftyError as error:
                self.failed[name] = str(error)
                continue
            if self.page is not None:
                # Read only now: another run may have added rows meanwhile.
                kept = records.read(records.record_of(self.page))
                records.write(merged(kept, row), self.page, unclaimed())
            yield row

    def _row(self, name: str, claim: Claim, context: Context) -> ClaimRow:
        before = time.monotonic()
        outcome = claim.run(context)
        return ClaimRow(
            technique=name,
            paper=claim.paper,
            source=claim.source,
            measured=outcome.measured,
            setting=outcome.setting,
            rule=claim.rule,
            verdict=outcome.verdict.value,
            minutes=round((time.monotonic() - before) / 60, 2),
            date=datetime.date.today().isoformat(),
            machine=f"{cpu_name()}, {cores()} cores",
            figures=dict(outcome.figures),
        )


def merged(kept: Mapping[str, ClaimRow], row: ClaimRow) -> dict[str, ClaimRow]:
    """The record with one row renewed; rows of techniques that have no claim any more go."""
    known = set(claims.names())
    return {name: old for name, old in kept.items() if name in known} | {row.technique: row}
