"""Choosing: the highest recovery that fits, and what to say where nothing does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from thrifty.errors import BudgetError
from thrifty.frontier.measurement import Measurement, Prediction
from thrifty.storage.budget import format_size

TIE = 1e-4  # nats; smaller differences of KL are rounding, so speed decides
RECOVERY_TIE = 0.005  # smaller differences of recovery are chance, so KL decides


def best(rows: Iterable[Measurement], min_recovery: float | None = None) -> Measurement | None:
    """Among the rows that fit memory, latency and the least recovery, and came furthest: the highest recovery (all
    beyond the baseline's is luck, and counts as the baseline's); within RECOVERY_TIE of it the lowest KL; within TIE
    of that the fastest decoder: as measured where the machine was quiet, else by the bytes. A row without a recovery
    yet is judged by its KL, and cannot meet a `min_recovery`.
    """
    fitting = [row for row in rows if row.eligible]
    if not fitting:
        return None
    furthest = max(row.rung for row in fitting)
    fitting = [row for row in fitting if row.rung == furthest and _reaches(row, min_recovery)]
    if not fitting:
        return None
    recovered = max(row.recovered for row in fitting)
    close = [row for row in fitting if row.recovered >= recovered - RECOVERY_TIE]
    least = min(row.kl for row in close)
    equals = [row for row in close if row.kl <= least + TIE]
    quiet = all(row.quiet for row in equals)
    return max(equals, key=lambda row: row.decode_rate if quiet else row.rate_from_bytes)


def _reaches(row: Measurement, least: float | None) -> bool:
    return least is None or (row.recovery is not None and row.recovery.value >= least)


def refuse_memory(
    predictions: Sequence[Prediction], budget: int, context: int, batch: int, longest: int
) -> BudgetError:
    """The error where nothing fits: by how much, and what would fit.

    longest: the context that the smallest recipe could hold in the budget, 0 where it could hold none.
    """
    smallest = min(predictions, key=lambda prediction: prediction.need.peak)
    need = smallest.need
    message = (
        f"nothing fits {format_size(budget)} at context {context}{_batch(batch)}: the smallest recipe, "
        f"{smallest.candidate.label}, needs {format_size(need.peak)} ({format_size(need.weights)} weights, "
        f"{format_size(need.cache_peak)} cache, {format_size(need.workspace)} workspace), "
        f"{format_size(need.peak - budget)} more. It would fit with --memory {-(-need.peak // 10**6)}MB"
    )
    return BudgetError(message + (f", or with --context {longest}." if longest else "; no context is short enough."))


def refuse_latency(fitting: Sequence[Prediction], latency: float, context: int, batch: int) -> BudgetError:
    """The error where no recipe that fits the memory can be fast enough. latency: seconds of a decode step."""
    fastest = min(fitting, key=lambda prediction: prediction.seconds)
    return BudgetError(
        f"nothing decodes within {milliseconds(latency)} at context {context}{_batch(batch)}: of {len(fitting)} "
        f"recipes that fit the memory, the fastest, {fastest.candidate.label}, reads for "
        f"{milliseconds(fastest.seconds)} a step at this machine's bandwidth, "
        f"{milliseconds(fastest.seconds - latency)} more, and computing takes longer still. "
        f"Ask for more than --latency {milliseconds(fastest.seconds, 1.05)}, for less --context, or give more --memory."
    )


def milliseconds(seconds: float, margin: float = 1.0) -> str:
    """A time as the option takes it, such as `8.25ms`."""
    return f"{seconds * margin * 1e3:.3g}ms"


def _batch(batch: int) -> str:
    return f", batch {batch}" if batch > 1 else ""
