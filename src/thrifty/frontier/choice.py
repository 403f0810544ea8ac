"""Choosing: the least divergence that fits, and what to say where nothing does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from thrifty.errors import BudgetError
from thrifty.frontier.measurement import Measurement, Need
from thrifty.storage.budget import format_size

TIE = 1e-4  # nats; smaller differences of KL are rounding, so speed decides


def best(rows: Iterable[Measurement]) -> Measurement | None:
    """The servable row that fits with the lowest KL; among rows within TIE of it the fastest decoder."""
    fitting = [row for row in rows if row.fits and row.candidate.servable]
    if not fitting:
        return None
    least = min(row.kl for row in fitting)
    return max((row for row in fitting if row.kl <= least + TIE), key=lambda row: row.decode_rate)


def refuse(needs: Sequence[tuple[str, Need]], budget: int, context: int, longest: int) -> BudgetError:
    """The error where nothing fits: by how much, and what would fit.

    needs: every servable recipe's label and need at `context`. longest: the context that the smallest recipe
    could hold in the budget, 0 where it could hold none.
    """
    label, need = min(needs, key=lambda pair: pair[1].peak)
    missing = need.peak - budget
    message = (
        f"nothing fits {format_size(budget)} at context {context}: the smallest recipe, "
        f"{label}, needs {format_size(need.peak)} ({format_size(need.weights)} weights, {format_size(need.cache_peak)} "
        f"cache, {format_size(need.workspace)} workspace), {format_size(missing)} more. "
        f"It would fit with --memory {-(-need.peak // 10**6)}MB"
    )
    return BudgetError(message + (f", or with --context {longest}." if longest else "; no context is short enough."))
