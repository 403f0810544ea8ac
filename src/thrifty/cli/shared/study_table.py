"""The tables of `thrifty study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column
from thrifty.evaluation.studies.harness.figures import UNTOLD
from thrifty.evaluation.studies.harness.findings import ABSENT

Row = Mapping[str, Any]


def show(document: Mapping[str, Any]) -> None:
    """The grid, its controls, and the findings in sentences."""
    cells: Sequence[Row] = document["cells"]
    tasks, batches = document["tasks"], _batches(cells)
    columns = [
        Column("weights", number=False),
        Column("cache", number=False),
        Column("MB", rank=2),
        Column("mean difference", rank=1),
        Column("95 % interval", rank=1),
        Column("reading", number=False, rank=3),
        *(Column(task, rank=4) for task in tasks),
        *(Column(f"tok/s × {batch}", rank=5) for batch in batches),
    ]
    title = (
        f"{document['model']}, {document['length']} tokens, {document['items_asked']} items, seed {document['seed']}"
    )
    output.table(title, columns, [_cells(row, tasks, batches) for row in cells])
    _legend(document)
    for control in document["controls"]:
        output.say(f"control: {control['name']} must {control['must']}: {control['outcome']} ({control['told']})")
    for finding in document["findings"]:
        if finding["verdict"] != ABSENT:
            output.say(f"{finding['paper']}: {finding['says']}. Here: {finding['here']}: {finding['verdict']}")
    for sentence in document["told"]:
        output.say(sentence)


def _cells(row: Row, tasks: Sequence[str], batches: Sequence[int]) -> list[str]:
    difference = row["difference"]
    cells = [row["weights"], row["cache"], _megabytes(row)]
    if difference is None:
        cells += ["", "", ""]
    elif not row["recipe"]["weights"] and not row["recipe"]["cache"]:
        cells += ["baseline", "", ""]
    else:
        interval = f"{_points(difference['low'])} to {_points(difference['high'])}"
        word = row["reading"]
        told = f"{word} of {100 * row['tells']:.1f}" if word == UNTOLD else word
        cells += [_points(difference["value"]), interval, told]
    cells += [f"{own['score']['value']:.3f}" if (own := row["tasks"].get(task)) else "" for task in tasks]
    rates = {rate["batch"]: rate for rate in row["served"]}
    return cells + [_rate(rates.get(batch)) for batch in batches]


def _legend(document: Mapping[str, Any]) -> None:
    where = "off the grid" if document["off_grid"] else "as shipped"
    output.say(
        f"weights {where}. Differences from the uncompressed model's score on the same items, mean over the tasks, in "
        "points; whole contexts resampled. 'No difference told of x': this many items can tell x points. MB: weights "
        "and the cache of one sequence. Rates in brackets were disturbed by other work and decide nothing."
    )


def _batches(cells: Sequence[Row]) -> list[int]:
    return sorted({rate["batch"] for row in cells for rate in row["served"]})


def _rate(rate: Row | None) -> str:
    if rate is None:
        return ""
    return f"({rate['rate']:.0f})" if rate["void"] else f"{rate['rate']:.0f}"


def _megabytes(row: Row) -> str:
    weights, cache = row["weights_bytes"], row["cache_bytes_of_a_sequence"]
    return "" if weights is None else f"{(weights + (cache or 0)) / 1e6:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
