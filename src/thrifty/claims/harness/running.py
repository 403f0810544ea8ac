"""Running claims one after the other: what there is time for, each result kept as soon as it is there."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty import claims, registry
from thrifty.claims.harness import page, records, versions
from thrifty.claims.harness.budget import SHORT, Budget
from thrifty.claims.harness.controls import ControlError, check
from thrifty.claims.harness.parts import Verdict
from thrifty.claims.harness.plan import Pace, Step, plan
from thrifty.claims.harness.records import ClaimRow, Key, Run
from thrifty.errors import StorageError, ThriftyError
from thrifty.evaluation.roofline.machine import cores, cpu_name

if TYPE_CHECKING:
    from thrifty.claims.harness.claim import Claim, Measurement
    from thrifty.claims.harness.context import Context

HALF = "judged"


def unclaimed() -> dict[str, str]:
    """Techniques that no claim checks, and their stages, in the order of the stages; controls left out."""
    known = set(claims.names())
    return {
        name: stage
        for stage in registry.STAGES
        for name in registry.names(stage)
        if name not in known and not _is_control(stage, name)
    }


def _is_control(stage: str, name: str) -> bool:
    cls: Any = registry.load(stage, name)
    return bool(getattr(getattr(cls, "traits", None), "control", False))


@dataclass
class Reproduction:
    """A run of claims. Iterate `rows`; what came before an interruption is kept.

    contexts: by the name of a model; who made it closes what it opened. page: where results go, the record
    beside it; None: nowhere. models: instead of each claim's own. left_out: steps that there was no time for. failed:
    claims that could not be measured, with the reason; their rows are stale.
    """

    contexts: Callable[[str], Context]
    names: Sequence[str]
    page: Path | None = None
    models: Sequence[str] = ()
    budget: Budget = SHORT
    seeds: Sequence[int] = (0,)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> list[Step]:
        """The plan."""
        return plan(self.names, self.budget, self.models)

    def rows(self) -> Iterator[ClaimRow]:
        """Run every claim that there is time for; where there is a page, its row is on disk when it is yielded."""
        started = time.monotonic()
        pace = Pace()
        for step in self.steps:
            planned = step.minutes * len(self.seeds)
            before = time.monotonic()
            if self.budget.minutes is not None:
                gone = (before - started) / 60
                if gone + pace.expected(planned) > self.budget.minutes:
                    self.left_out.append(f"{step.technique} on {step.model}")
                    continue
            claim = claims.load(step.technique)
            try:
                row = self._row(step, claim)
                pace.add(planned, (time.monotonic() - before) / 60)
            except StorageError:  # a full disk, or another run that has the results: it says nothing of the claim
                raise
            except ThriftyError as error:
                self.failed[f"{step.technique} on {step.model}"] = str(error)
                self._keep(stale(step, claim, str(error)))
                continue
            except Exception as error:  # not one that anybody foresaw: it ends the run, and no old verdict stays
                self._keep(stale(step, claim, f"{type(error).__name__}: {error}"))
                raise
            self._keep(row)
            yield row

    def _row(self, step: Step, claim: Claim) -> ClaimRow:
        before = time.monotonic()
        context = self.contexts(step.model)
        context.ran.clear()
        context.probed.clear()
        measured = {seed: self._measured(step, claim, context, seed) for seed in self.seeds}
        verdicts = {seed: measurement.verdict() for seed, measurement in measured.items()}
        verdict = agreed(verdicts)
        minutes = round((time.monotonic() - before) / 60, 2)
        run = _run(step, context, self.budget, verdicts, minutes)
        first = next(iter(measured.values()))
        return dataclasses.replace(_empty(step, claim), verdict=verdict.value, measurement=first, run=run)

    def _measured(self, step: Step, claim: Claim, context: Context, seed: int) -> Measurement:
        """One seed's. Raises ControlError where a control behaves otherwise than it must."""
        context.seed = seed
        context.say(f"{step.technique} on {step.model}, seed {seed} (about {step.minutes:.1f} minutes)")
        measurement = claim.measure(context)
        check(measurement.controls)
        return measurement

    def _keep(self, row: ClaimRow) -> None:
        if self.page is None:
            return
        # Read only now: another run may have added rows meanwhile.
        rows = merged(records.read(records.record_of(self.page)), row)
        page.write(rows, self.page, unclaimed(), older(rows))


def _run(step: Step, context: Context, budget: Budget, verdicts: Mapping[int, Verdict], minutes: float) -> Run:
    """Where a row's figures come from."""
    state = versions.commit()
    return Run(
        commit=state.name,
        dirty=state.dirty,
        code=versions.code(step.technique),
        weights=context.model.version,
        seeds=tuple(verdicts),
        verdicts={str(seed): verdict.value for seed, verdict in verdicts.items()},
        tables=tuple(context.ran),
        half=HALF,
        budget=budget.name,
        threads=context.options["threads"] or cores(),
        machine=f"{cpu_name()}, {cores()} cores",
        minutes=minutes,
        date=datetime.date.today().isoformat(),
        beside=versions.beside(context.ran),
        heads=tuple(context.probed.values()),
    )


def agreed(verdicts: Mapping[int, Verdict]) -> Verdict:
    """What several seeds say together: what all say, else that it is open.

    Raises ControlError where one says that the claim holds and another that it does not: then noise decides.
    """
    kinds = set(verdicts.values())
    if {Verdict.HOLDS, Verdict.FAILS} <= kinds:
        said = ", ".join(f"seed {seed}: {verdict.value}" for seed, verdict in verdicts.items())
        raise ControlError(f"seeds give opposite verdicts ({said}): the intervals are too narrow for this measurement")
    return kinds.pop() if len(kinds) == 1 else Verdict.INCONCLUSIVE


def stale(step: Step, claim: Claim, reason: str) -> ClaimRow:
    """The row of a run that gave no result."""
    today = datetime.date.today().isoformat()
    return dataclasses.replace(_empty(step, claim), stale=f"{today}: {' '.join(reason.split())}")


def _empty(step: Step, claim: Claim) -> ClaimRow:
    return ClaimRow(step.technique, step.model, claim.paper, claim.source, claim.rule, records.STALE, None, None)


def merged(kept: Mapping[Key, ClaimRow], row: ClaimRow) -> dict[Key, ClaimRow]:
    """The record with one row renewed; rows of techniques that have no claim any more go."""
    known = set(claims.names())
    return {key: old for key, old in kept.items() if old.technique in known} | {row.key: row}


def older(rows: Mapping[Key, ClaimRow]) -> set[Key]:
    """The rows whose technique, defaults or claim changed since they were measured, or what stands beside it: a rival's
    defaults, or what measures them.
    """
    known = set(claims.names())
    current = {name: versions.code(name) for name in {row.technique for row in rows.values()} if name in known}
    runs = [(key, row.run) for key, row in rows.items() if row.run is not None]
    changed = {key for key, run in runs if run.code != current.get(key[0])}
    return changed | {key for key, run in runs if run.beside != versions.beside(run.tables)}
