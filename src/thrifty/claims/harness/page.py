"""The page of claims: a table to look verdicts up in, and below it what each was made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from thrifty.claims.harness.parts import Part, written
from thrifty.claims.harness.records import STALE, ClaimRow, Key, record_of, text_of
from thrifty.errors import StorageError
from thrifty.files import replace_file
from thrifty.models.embedded import MODELS

OLDER = "older code"
BASELINES = ("full", "autoregressive")

HEAD = """# Claims

What papers say, measured here. Written by `thrifty reproduce --all -o FILE`; a technique's name in the place of `--all`
renews its rows, and neither of both writes the page again from its record, the `.json` file beside it.

A verdict is a statistic. The headline's 95 % interval (a bootstrap over contexts, of paired differences or ratios) lies
on one side of the paper's bar, or it straddles it:

- **holds**, **does not hold here**: the whole interval lies on one side. The models are far smaller than the papers',
  so that a verdict speaks of this model and setting alone.
- **inconclusive**: the interval straddles the bar, the timing was void, or the claim would hold where random eviction
  could not be told from the full cache.
- **not testable**: something is missing that the claim needs; the row says what.
- **stale**: the last run gave no result, for the reason told. `older code`: the technique, its defaults, its claim, a
  rival or what measures them changed since.

Other parts are shown with verdicts of their own and lift nothing. Every table has controls. On the cache: random
eviction at the same budget must lose against the full cache, the technique with the full budget must hold, the newest
tokens alone are shown; a technique must also be ahead of random eviction and hold the bytes that it promises. On
weights: a poorer way to store them must lose against the weights as they are. "Tells" is half the interval's width: a
smaller difference is beyond this setting. Items come from the judged half; defaults are tuned on the other one.
"""

MARK = "<!-- figures: {record} -->"
"""Above a table whose figures come from a record; a test holds all tables that have it to that."""

TABLE = """
| technique | model | the paper says | headline | tells | verdict |
|---|---|---|---|---|---|
"""


def write(rows: Mapping[Key, ClaimRow], page: Path, unclaimed: Mapping[str, str], older: Collection[Key] = ()) -> None:
    """Write the page and, beside it, the record: each is the old file or the new one, whatever happens.

    unclaimed: techniques without a claim, and their stages. older: rows of older code. Raises StorageError where they
    cannot be written.
    """
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(record_of(page), text_of(rows))
        replace_file(page, markdown(rows, unclaimed, older, record_of(page).name))
    except OSError as error:
        raise StorageError(
            f"cannot write {page}: {error.strerror or error}; name another file with --output"
        ) from error


def markdown(
    rows: Mapping[Key, ClaimRow],
    unclaimed: Mapping[str, str],
    older: Collection[Key] = (),
    record: str = "claims.json",
) -> str:
    """The page. record: the name of the file that its figures are in."""
    keys = sorted(rows)
    mark = f"\n{MARK.format(record=record)}\n" if keys else ""
    text = HEAD + mark + TABLE + "".join(_line(rows[key], key in older) + "\n" for key in keys)
    for technique in dict.fromkeys(name for name, _ in keys):
        own = [rows[key] for key in keys if key[0] == technique]
        text += f"\n## {technique}\n\n{own[0].rule[:1].upper()}{own[0].rule[1:]}. Source: {own[0].source}.\n"
        text += "".join(f"\n{_details(row)}" for row in own)
    if unclaimed:
        none = [f"- `{name}` ({stage}): {_why(name)}." for name, stage in unclaimed.items()]
        text += "\n## Techniques without a claim\n\n" + "\n".join(none) + "\n"
    return text


def _why(name: str) -> str:
    return "the baseline of its stage, which claims nothing" if name in BASELINES else "no claim yet"


def _line(row: ClaimRow, older: bool) -> str:
    """A row of the table."""
    verdict = f"**{row.verdict}**" + (f" ({OLDER})" if older and row.verdict != STALE else "")
    headline = row.stale if row.measurement is None else row.measurement.headline.told()
    power = _power(row.measurement.headline) if row.measurement is not None else "-"
    cells = (f"`{row.technique}`", row.model, row.paper, headline, power, verdict)
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _power(part: Part) -> str:
    """What the setting can tell, with its unit; nothing of what is counted."""
    if not part.power:
        return "-"
    unit = f" {part.unit}" if part.unit in ("points", "nats") else ""
    return written(part.power, part.unit).lstrip("+") + unit


def _details(row: ClaimRow) -> str:
    """A row's parts, controls and run, as a list."""
    measured = row.measurement
    if measured is None:
        return f"On `{row.model}`: {row.verdict} ({row.stale}).\n"
    shown = [f"headline: {_judged(measured.headline)}"]
    shown += [f"needed: {_judged(gate)}" for gate in measured.gates]
    shown += [_judged(part) for part in measured.parts]
    if measured.controls:
        shown.append("controls, against the full cache: " + "; ".join(control.told() for control in measured.controls))
    model = MODELS.get(row.model)
    shown += [text for text in (measured.told, measured.setting, model.note if model else "") if text]
    if measured.counts:
        shown.append(", ".join(f"{count} {name}" for name, count in measured.counts.items()))
    if row.run is not None:
        shown.append(_run(row))
    lines = [f"- {_cell(text, table=False)}" for text in shown]
    return f"On `{row.model}`, **{row.verdict}**:\n\n" + "\n".join(lines) + "\n"


def _judged(part: Part) -> str:
    verdict = part.verdict()
    paper = f", the paper: {part.paper}" if part.paper else ""
    return part.told() + paper + (f": {verdict.value}" if verdict is not None and part.estimate is not None else "")


def _run(row: ClaimRow) -> str:
    """Where the figures come from."""
    run = row.run
    assert run is not None, "the caller looked"
    seeds = ", ".join(f"{seed}: {verdict}" for seed, verdict in run.verdicts.items())
    changed = ", with changes" if run.dirty else ""
    heads = f"scores of heads {'; '.join(run.heads)}; " if run.heads else ""
    return (
        f"{run.half} half, budget {run.budget}, seed {seeds}; commit {run.commit}{changed}, "
        f"weights {run.weights[:12]}; {run.date}, {run.minutes:.1f} minutes, {run.threads} threads, {run.machine}; "
        f"{heads}recipes: " + "; ".join(f"`{table}`" for table in run.tables)
    )


def _cell(text: str, table: bool = True) -> str:
    return " ".join((text.replace("|", "\\|") if table else text).split())
