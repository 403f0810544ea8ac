"""The page: a table a person reads, made from the figures of a run, finished or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.cache_table.questions import SPEED
from benchmarks.cache_table.rows import KVPRESS, Row
from benchmarks.cache_table.sections import Section

from thrifty.models.embedded import MODELS

Parts = Mapping[str, Mapping[str, Any]]
Found = Mapping[str, Parts]
"""Figures, or {"error": reason}, by the row's label and the part's name."""

HEAD = """# KV-cache techniques, measured

Made by `make kv-cache`; do not edit. {threads} threads, {machine}, {date}.

Every technique of the registry at several budgets, the uncompressed cache first, and
[kvpress](https://github.com/NVIDIA/kvpress) {version} on the same weights, the same token ids and the same questions,
in transformers and bf16. Both compress a prompt and then answer questions about it
([evaluation.md](evaluation.md) says what is asked); KL and top-1 are against the same engine's uncompressed model on
prose. A model's rows are its own: no column compares models.

- **engine**: kvpress with its own *defaults* compares what people get (its SnapKV has a window of 64, a kernel of 5 and
  pools by the mean); *set alike*, both have the same window, kernel, pooling and sinks, as far as the press can.
  Its `observed-attention` is related to H2O and another method: the mean attention of possible queries, no newest half,
  of the prompt alone.
- **budget**: the share of the prompt that a technique is told to keep, or bits, or nothing where its defaults ran.
- **cache**: bytes that the ledger holds for the sequence after the timed tokens, and their share of Thrifty's full
  cache; of kvpress the bytes of its cache's tensors (AdaKV and KVzip mask there and free nothing).
- **peak MB**: the ledger's highest while the prompt is prefilled and decoded, weights left out. **process MB**: how far
  the process grew meanwhile, which is what both have.
"""

SECTION = """## {section.model}

{note}Prompts of {section.length} tokens, {section.items} questions a task; {speed}.{options}
"""


def page(facts: Mapping[str, Any], texts: Iterable[str]) -> str:
    """The whole page as Markdown, of its sections' texts."""
    return "\n".join((HEAD.format(**facts), *texts))


def page_of(section: Section, rows: Sequence[Row], tasks: Sequence[str], found: Found) -> str:
    """One model's part of the page."""
    timed = f"cache, speed and memory are those of a prompt of {section.context} tokens"
    speed = timed if section.context else "cache, speed and memory were not measured"
    options = "".join(f" `{name}` has {_words(own)} here." for name, own in section.options.items())
    known = MODELS.get(section.model)
    note = f"{known.note}\n\n" if known is not None and known.note else ""
    head = SECTION.format(section=section, speed=speed, options=options, note=note)
    lines = [head, *table(rows, tasks, found), ""]
    told = [f"- {row.label}: {row.note}." for row in ordered(rows) if row.note]
    lines += ["Read with care:", "", *told, ""] if told else []
    failed = list(reasons(rows, found))
    if failed:
        lines += ["What could not be measured:", "", *failed, ""]
    return "\n".join(lines)


def table(rows: Sequence[Row], tasks: Sequence[str], found: Found) -> list[str]:
    """The table's lines, kvpress's rows behind those of the technique with the same name."""
    columns = [
        "technique",
        "budget",
        "engine",
        "cache",
        *_heads(tasks),
        "prefill tok/s",
        "decode tok/s",
        "peak MB",
        "process MB",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * 3}{'---:|' * (len(columns) - 3)}"]
    full = found.get(rows[0].label, {}).get(SPEED, {}).get("kept") if rows else None
    return lines + [f"| {' | '.join(_cells(row, tasks, found.get(row.label, {}), full))} |" for row in ordered(rows)]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By technique in the order of first appearance, an engine's rows together."""
    held = list(rows)
    names = list(dict.fromkeys(row.technique for row in held))
    return sorted(held, key=lambda row: (names.index(row.technique), row.engine == KVPRESS))


def reasons(rows: Sequence[Row], found: Found) -> Iterable[str]:
    """One line for each part that failed, equal reasons of a row folded."""
    for row in ordered(rows):
        by_reason: dict[str, list[str]] = {}
        for part, figures in found.get(row.label, {}).items():
            if "error" in figures:
                by_reason.setdefault(figures["error"], []).append(part)
        for reason, parts in by_reason.items():
            yield f"- {row.label} ({', '.join(parts)}): {reason}"


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def _heads(tasks: Sequence[str]) -> list[str]:
    return [name for task in tasks for name in (("KL", "top-1") if task.startswith("kl") else (task,))]


def _cells(row: Row, tasks: Sequence[str], parts: Parts, full: float | None) -> list[str]:
    speed = parts.get(SPEED, {})
    engine = f"{row.engine} ({row.setting})" if row.setting else row.engine
    cells = [row.technique, row.budget or "–", engine, _kept(speed.get("kept"), full)]
    for task in tasks:
        figures = parts.get(task, {})
        if task.startswith("kl"):
            cells += [_number(figures.get("kl"), ".4f"), _number(figures.get("top1"), ".3f")]
        else:
            cells.append(_number(figures.get("score"), ".2f"))
    peak, process = (speed.get(name) for name in ("peak", "process"))
    rates = [_number(speed.get("prefill"), ".0f"), _number(speed.get("decode"), ".1f")]
    return [*cells, *rates, _megabytes(peak), _megabytes(process)]


def _kept(kept: float | None, full: float | None) -> str:
    if kept is None:
        return "–"
    return f"{_megabytes(kept)} MB" + (f" ({kept / full:.1%})" if full else "")


def _megabytes(value: float | None) -> str:
    return _number(None if value is None else value / 1e6, ".1f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
