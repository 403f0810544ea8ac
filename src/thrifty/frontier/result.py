"""What a search found, as one JSON-ready document: `thrifty fit --json` prints it, the report shows it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.measuring.memory import serving_baseline
from thrifty.frontier import explain
from thrifty.frontier.measurement import Measurement, on_frontier, only_predicted

if TYPE_CHECKING:
    from thrifty.frontier.candidates import Candidate
    from thrifty.frontier.fit import Fit


def document(
    fit: Fit,
    model: str,
    command: str,
    *,
    interrupted: bool = False,
    profile: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """candidates: those that ran, as they were first measured, then those that were only predicted. winner: its place
    among them. profile: of the winner, as `thrifty bench --profile` tells it. answers: prompt, baseline and winner.
    """
    question, best, rows = fit.question, fit.best, fit.measured
    ran = {row.candidate.key for row in rows}
    step = explain.next_step(fit)
    servable = [row for row in rows if row.candidate.servable]
    candidates = [
        row.as_dict() | _reading(fit, row.candidate) | {"on_frontier": on_frontier(row, servable)} for row in rows
    ]
    for key, prediction in fit.predictions.items():
        if key not in ran:
            fits = fit.fits(prediction) and fit.quick(prediction)
            known = only_predicted(prediction, fits) | _reading(fit, prediction.candidate)
            candidates.append(known | {"on_frontier": False})
    return {
        "model": model,
        "memory_bytes": question.memory,
        "context": question.context,
        "serving_baseline_bytes": None if question.model.path is None else serving_baseline(question.model.path),
        "measured_after_tokens": fit.prefix,
        "machine": _machine(fit),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "budget": _budget(fit),
        "dropped": fit.dropped() if fit.predictions else {},
        "plan": None if fit.plan is None else fit.plan.as_dict(),
        "skipped": [{"recipe": candidate.label, "reason": reason} for candidate, reason in fit.skipped],
        "undefined_tasks": fit.exam.undefined(fit.base),
        "candidates": candidates,
        "winner": None if best is None else rows.index(best),
        "best": None if best is None else best.as_dict(),
        "why": explain.why(fit),
        "next_step": step.as_dict() if step else None,
        "memory": None if best is None else _memory(best),
        "profile": profile,
        "answers": list(answers),
        "seconds": round(fit.workshop.spent, 2),
        "interrupted": interrupted,
    }


def _machine(fit: Fit) -> dict[str, Any]:
    from thrifty.kernels import dispatch

    machine = fit.workshop.machine()
    return {
        "name": machine.name,
        "cpu": machine.title,
        "threads": fit.question.threads or dispatch.threads(),
        "bandwidth_gb_s": round(machine.bandwidth / 1e9, 1),
        "memory_bytes": machine.memory,
    }


def _versions() -> dict[str, str]:
    import numpy

    import thrifty

    return {"thrifty": thrifty.__version__, "python": platform.python_version(), "numpy": numpy.__version__}


def _budget(fit: Fit) -> dict[str, Any]:
    question = fit.question
    return {
        "memory_bytes": question.memory,
        "context": question.context,
        "batch": question.batch,
        "latency_ms": None if question.latency is None else question.latency * 1e3,
        "min_recovery": question.min_recovery,
        "minutes": question.minutes,
        "seed": question.seed,
    }


def _memory(best: Measurement) -> dict[str, int]:
    need = best.need
    return {
        "weights": need.weights,
        "cache_peak": need.cache_peak,
        "cache_steady": need.cache_steady,
        "workspace": need.workspace,
    }


def _reading(fit: Fit, candidate: Candidate) -> dict[str, float | None]:
    """How often a prompt is read, in prefills, and the seconds of that at the full context by the roofline."""
    prediction = fit.predictions[candidate.key]
    return {"prefills": prediction.prefills, "predicted_prefill_s": round(prediction.prefill, 3) or None}
