"""What the report says: the document's figures as sentences and table cells."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.frontier.report.document import Candidate, Document, Interval, Share
from thrifty.storage.budget import format_size

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """sort: None sorts last. note: in small print below; mark: how it looks."""

    text: str
    sort: float | str | None = None
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """first: the order of the first click. minor: left out on a phone. unit: said where the column's head is not."""

    title: str
    note: str = ""
    unit: str = ""
    first: str = "ascending"
    minor: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table. index: into the document's candidates. kind: its look, the plot's word."""

    index: int
    kind: str
    badges: list[str]
    cells: list[Cell]


@dataclass(frozen=True)
class Bar:
    """A part of a whole, as share 0 to 1."""

    name: str
    share: float
    texts: list[str]


COLUMNS = (
    Column("recipe"),
    Column("needs", "peak"),
    Column("recovery", "95% interval", first="descending"),
    Column("KL", "nats", "nats"),
    Column("same choice", "top-1", first="descending", minor=True),
    Column("decode", "tokens/s", "tokens/s", "descending"),
    Column("prefill", "tokens/s", "tokens/s", "descending", minor=True),
    Column("holds", "steady", minor=True),
)


def row(document: Document, index: int, kind: str) -> Row:
    """The table's row of a candidate."""
    candidate, budget = document.candidates[index], document.budget.memory_bytes
    quality = candidate.quality
    excess = _excess(candidate, budget)
    cells = [
        Cell(candidate.recipe, candidate.recipe.lower()),
        Cell(
            format_size(candidate.need_peak_bytes),
            candidate.need_peak_bytes,
            excess,
            "over" if excess else "",
        ),
        recovery_cell(candidate, candidate is document.baseline),
        _kl_cell(candidate),
        Cell(f"{quality.top1.value:.1%}", quality.top1.value) if quality else Cell(NONE),
        _decode_cell(candidate, max((row.measured_after_tokens or 0 for row in document.candidates), default=0)),
        Cell(f"{candidate.prefill_tok_s:,.0f}", candidate.prefill_tok_s) if candidate.prefill_tok_s else Cell(NONE),
        Cell(format_size(candidate.need_steady_bytes), candidate.need_steady_bytes),
    ]
    return Row(index, kind, _badges(candidate, kind), cells)


def recovery_cell(candidate: Candidate, baseline: bool = False) -> Cell:
    """Score over that of the uncompressed model, or in words why there is no figure."""
    if candidate.recovery is not None:
        interval = candidate.recovery
        note = "" if baseline else _between(interval)
        return Cell(f"{interval.value:.1%}", interval.value, note)
    if candidate.stage == "tasks":
        return Cell("undefined", mark="word")
    if baseline and candidate.measured:
        return Cell("baseline", 1.0, mark="word")
    return Cell("not run" if candidate.measured else "predicted", mark="word")


def _excess(candidate: Candidate, budget: int) -> str:
    over = candidate.need_peak_bytes - budget
    if not candidate.servable:
        return ""
    return f"{format_size(over)} over" if over > 0 else "" if candidate.fits else "outside the bounds"


def _kl_cell(candidate: Candidate) -> Cell:
    if candidate.quality is None:
        return Cell("baseline", 0.0, mark="word") if candidate.kl == 0.0 else Cell(NONE)
    return Cell(nats(candidate.quality.kl.value), candidate.quality.kl.value)


def _decode_cell(candidate: Candidate, longest: int) -> Cell:
    """longest: tokens after which the furthest rows were measured; a shorter run says after how many it was."""
    if candidate.decode_tok_s is not None:
        after = candidate.measured_after_tokens or longest
        note = f"after {after:,}" if after < longest else ""
        return Cell(f"{candidate.decode_tok_s:,.0f}", candidate.decode_tok_s, note)
    if candidate.predicted_decode_tok_s is None:
        return Cell(NONE)
    predicted = candidate.predicted_decode_tok_s
    return Cell(f"≈ {predicted:,.0f}", predicted, "predicted", "predicted")


def _badges(candidate: Candidate, kind: str) -> list[str]:
    words = {"winner": "winner", "baseline": "uncompressed", "predicted": "predicted"}
    badges = [words[kind]] if kind in words else []
    return badges + (["on the grid"] if candidate.grid == "on the grid" else [])


def nats(value: float) -> str:
    """A divergence to two significant digits, at least four places."""
    return "0" if value == 0 else f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def lede(document: Document) -> str:
    """The winner and what it costs, in one sentence."""
    best, base = document.best, document.baseline
    if best is None:
        return _nothing_fits(document)
    if best.uncompressed:
        return "The uncompressed model itself fits: nothing has to be given up."
    parts = []
    if best.recovery is not None:
        parts.append(f"recovers {best.recovery.value:.1%} of the uncompressed model's score")
    elif best.stage == "tasks":
        parts.append("has no defined recovery, for the uncompressed model scores nothing on these tasks")
    elif best.kl is not None:
        parts.append(f"stays within a KL divergence of {nats(best.kl)} of the uncompressed model")
    if base is not None:
        saved = base.need_peak_bytes - best.need_peak_bytes
        word = "saves" if saved >= 0 else "adds"
        parts.append(f"{word} {format_size(abs(saved))} of its {format_size(base.need_peak_bytes)}")
        if base.decode_tok_s and best.decode_tok_s:
            parts.append(f"decodes at {best.decode_tok_s / base.decode_tok_s:.2f} times its speed")
    return "It " + (", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)) + "."


def _nothing_fits(document: Document) -> str:
    fitting = [row for row in document.candidates if row.servable]
    if not fitting:
        return "Nothing was measured, so nothing can be recommended."
    least = min(fitting, key=lambda row: row.need_peak_bytes)
    missing = least.need_peak_bytes - document.budget.memory_bytes
    if missing <= 0:
        return f"No recipe was chosen. The smallest, {least.recipe}, needs {format_size(least.need_peak_bytes)}."
    return (
        f"Nothing fits: the smallest recipe, {least.recipe}, needs {format_size(least.need_peak_bytes)}, "
        f"{format_size(missing)} too much."
    )


def tiles(document: Document) -> list[tuple[str, str, str]]:
    """The winner's four figures: name, figure, small print."""
    best, base = document.best, document.baseline
    if best is None:
        return []
    kept = recovery_cell(best, best is base)
    agreement = (
        f"same first choice at {best.quality.top1.value:.1%} of tokens" if best.quality else "the baseline itself"
    )
    rate = best.decode_rate
    pace = f"uncompressed {base.decode_tok_s:,.0f}" if base is not None and base.decode_tok_s else "tokens a second"
    return [
        ("memory at its peak", format_size(best.need_peak_bytes), f"of {format_size(document.budget.memory_bytes)}"),
        ("recovery", kept.text, f"95%: {kept.note}" if kept.note else "against the uncompressed model"),
        ("KL divergence", nats(best.kl) if best.kl is not None else NONE, agreement),
        ("decoding", f"{rate:,.0f} tokens/s" if rate else NONE, pace),
    ]


def budget_terms(document: Document) -> list[tuple[str, str]]:
    """The question, term by term."""
    asked = document.budget
    terms: list[tuple[str, str | None]] = [
        ("memory", format_size(asked.memory_bytes)),
        ("context", f"{asked.context:,} tokens"),
        ("batch", str(asked.batch) if asked.batch and asked.batch > 1 else None),
        ("latency", f"{asked.latency_ms:g} ms a token" if asked.latency_ms is not None else None),
        ("recovery at least", f"{asked.min_recovery:.0%}" if asked.min_recovery is not None else None),
        ("search time", f"{asked.minutes:g} minutes" if asked.minutes is not None else None),
        ("seed", str(asked.seed) if asked.seed is not None else None),
    ]
    return [(name, value) for name, value in terms if value is not None]


def profile_bars(shares: dict[str, Share]) -> list[Bar]:
    """Where a token's time goes, as shares of the longest. texts: microseconds, share, bytes, the rate of reading."""
    total = math.fsum(share.us_per_token for share in shares.values()) or 1.0
    longest = max((share.us_per_token for share in shares.values()), default=0.0) or 1.0
    ordered = sorted(shares.items(), key=lambda item: -item[1].us_per_token)
    return [Bar(name, share.us_per_token / longest, _profile_texts(share, total)) for name, share in ordered]


def _profile_texts(share: Share, total: float) -> list[str]:
    rate = f"{share.bytes / share.us_per_token / 1e3:.1f} GB/s" if share.bytes and share.us_per_token else NONE
    size = format_size(share.bytes) if share.bytes else NONE
    return [f"{share.us_per_token:,.1f}", f"{share.us_per_token / total:.0%}", size, rate]


def memory_bars(document: Document) -> list[tuple[str, int, list[Bar]]]:
    """The winner and the uncompressed model: name, peak in bytes, parts as shares of the longer of both and budget."""
    best, base, memory = document.best, document.baseline, document.memory
    if best is None or memory is None:
        return []
    parts = {"weights": memory.weights, "cache, held": memory.cache_steady}
    parts |= {"cache, at the peak": max(0, memory.cache_peak - memory.cache_steady), "workspace": memory.workspace}
    bars = [(best.recipe, parts)]
    if base is not None and base is not best:
        held = max(0, base.need_steady_bytes - base.weights_bytes)
        rest = max(0, base.need_peak_bytes - base.need_steady_bytes)
        bars.append(("uncompressed", {"weights": base.weights_bytes, "cache, held": held, "peak and workspace": rest}))
    longest = memory_scale(document)
    return [
        (name, sum(sizes.values()), [Bar(part, size / longest, [format_size(size)]) for part, size in sizes.items()])
        for name, sizes in bars
    ]


def memory_scale(document: Document) -> int:
    """The bytes that the memory bars' full width stands for."""
    shown = [row.need_peak_bytes for row in (document.best, document.baseline) if row is not None]
    return max([document.budget.memory_bytes, *shown])


def task_rows(document: Document) -> list[tuple[str, int, str, str, str, str]]:
    """The winner by task: name, items, the baseline's score, the winner's, what is kept, its interval."""
    best, base = document.best, document.baseline
    if best is None:
        return []
    rows = []
    for name, task in best.tasks.items():
        reference = base.tasks.get(name) if base is not None else None
        kept = task.recovery
        rows.append(
            (
                name,
                task.items,
                f"{reference.score:.2f}" if reference else NONE,
                f"{task.score:.2f}",
                f"{kept.value:.1%}" if kept else "undefined",
                _between(kept) if kept else "the uncompressed model scores nothing",
            )
        )
    return rows


def _between(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{interval.high:.1%}"


def reasons(document: Document) -> list[str]:
    """Why the winner won; the next step up has a place of its own."""
    return [
        reason for reason in document.why if document.next_step is None or not reason.startswith("The next step up is ")
    ]


def gain(document: Document) -> str:
    """What the next step up would bring, as words."""
    step = document.next_step
    if step is None or step.gain is None:
        return ""
    return step.gain if isinstance(step.gain, str) else f"{step.gain:+.4g}"


def compared(baseline: str, answer: str) -> Iterator[tuple[str, bool]]:
    """The answer in pieces, True where it says something else than the baseline."""
    pieces = re.findall(r"\S+\s*|^\s+", answer)
    matcher = difflib.SequenceMatcher(None, baseline.split(), [piece.strip() for piece in pieces], autojunk=False)
    for verb, _, _, start, end in matcher.get_opcodes():
        if piece := "".join(pieces[start:end]):
            yield piece, verb != "equal" and bool(piece.strip())


def figures(row: Row) -> list[tuple[str, str, str]]:
    """What the plot says of a row: column, figure and small print, as far as there is a figure."""
    return [
        (column.title, cell.text + (f" {column.unit}" if column.unit and cell.mark != "word" else ""), cell.note)
        for column, cell in zip(COLUMNS[1:], row.cells[1:], strict=True)
        if cell.text != NONE
    ]
