"""The frontier as it grows: a live table on a terminal, one line a recipe elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from thrifty.cli import output

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.measurement import Measurement

COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("recipe", "left"),
    ("weights", "left"),
    ("fits", "left"),
    ("peak", "right"),
    ("steady", "right"),
    ("ledger peak", "right"),
    ("ledger steady", "right"),
    ("process", "right"),
    ("prefill/s", "right"),
    ("decode/s", "right"),
    ("KL", "right"),
    ("top-1", "right"),
    ("recovery", "right"),
)


class Watcher:
    """Shows rows as they are measured. quiet: only a progress bar, and only on a terminal."""

    def __init__(self, fit: Fit, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.fit = fit
        self.quiet = quiet
        self.rows: list[Measurement] = []
        self.terminal = sys.stdout.isatty() and sys.stderr.isatty()
        columns = (TextColumn("measuring recipes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=output.messages())
        self.task = self.progress.add_task("fit", total=fit.total)
        self.live: Any = None

    def __enter__(self) -> Watcher:
        if self.terminal:
            from rich.live import Live

            self.live = Live(self._screen(), console=output.messages(), refresh_per_second=4, transient=True)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)
        if not self.quiet and self.rows and (error is None or isinstance(error, KeyboardInterrupt)):
            output.console().print(self._table())
            output.console().print(LEGEND.format(self._setting()), highlight=False)

    def add(self, row: Measurement) -> None:
        """Show one more row."""
        self.rows.append(row)
        self.progress.advance(self.task)
        if self.live is not None:
            self.live.update(self._screen())
        elif not self.quiet:
            marker = "fits" if row.fits else "too big"
            cells = ", ".join(
                f"{name} {cell}" for (name, _), cell in zip(COLUMNS[3:], self._cells(row)[3:], strict=True)
            )
            grid = row.candidate.grid.value
            done = f"[{len(self.rows)}/{self.fit.total}]"
            sys.stdout.write(f"{done} {row.candidate.label} ({grid}; {marker}): {cells}\n")
            sys.stdout.flush()

    def _screen(self) -> Any:
        from rich.console import Group

        return Group(self.progress) if self.quiet else Group(self._table(), self.progress)

    def _table(self) -> Any:
        from rich.table import Table

        from thrifty.frontier.measurement import on_frontier

        best = self.fit.best
        table = Table(header_style="bold")
        for name, side in COLUMNS:
            table.add_column(name, justify=side, no_wrap=name not in ("recipe", "weights"), overflow="fold")
        for row in self.rows:
            style = "bold green" if row is best else "" if on_frontier(row, self.rows) else "dim"
            table.add_row(*self._cells(row), style=style)
        return table

    def _cells(self, row: Measurement) -> tuple[str, ...]:
        quality, best = row.quality, self.fit.best
        frontier = "★ " if row is best else ""
        recovery = quality.recovery if quality else None
        return (
            frontier + row.candidate.label,
            row.candidate.grid.value,
            ("yes" if row.fits else "no") if row.candidate.servable else "-",
            _mb(row.need.peak),
            _mb(row.need.steady),
            _mb(row.ledger_peak),
            _mb(row.ledger_steady),
            _mb(row.process_peak),
            f"{row.prefill_rate:.0f}",
            f"{row.decode_rate:.1f}",
            f"{quality.kl.value:.4f}" if quality else "baseline",
            f"{quality.top1.value:.1%}" if quality else "",
            f"{recovery.value:.3f}±{(recovery.high - recovery.low) / 2:.3f}" if recovery else "",
        )

    def _setting(self) -> dict[str, int]:
        question = self.fit.question
        return {"context": question.context, "prefix": self.fit.prefix, "scored": question.scored}


LEGEND = (
    "MB. peak, steady: weights + cache (+ workspace) of one sequence at the full context ({0[context]} tokens, the "
    "last 256 an answer). ledger, process, rates and quality: measured in this run ({0[prefix]} tokens compressed, "
    "{0[scored]} scored after it) against the uncompressed model. 'on the grid': the checkpoint may already lie on "
    "such a grid, so the figure holds for it alone; 'off the grid': what the technique costs, not a recipe to "
    "serve. Dim: not on the frontier."
)


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
