"""What `thrifty bench-serve` does with its options: the load, and the table of its figures."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column
from thrifty.cli.shared.progress import progress

if TYPE_CHECKING:
    from thrifty.loadtest.api import Endpoint
    from thrifty.loadtest.trials import Pace
    from thrifty.loadtest.workload import Workload

DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors")
"""What one line of JSON leaves out: lists of every request."""

IN_CAPACITY = 16
"""Requests at a time while a sweep measures the capacity, where --concurrency does not say."""


@dataclass(frozen=True)
class Setup:
    """The options, checked. sweep: rates; None for a capacity's own. swept: whether there is a sweep at all."""

    endpoint: Endpoint
    workload: Workload
    pace: Pace
    swept: bool
    sweep: tuple[float, ...] | None
    objectives: dict[str, float]
    percentiles: tuple[float, ...]

    @classmethod
    def of(
        cls, *, url: str, model: str, endpoint: str, key: str | None, temperature: float, ignore_eos: bool,
        timeout: float, extra: Mapping[str, Any], rate: float, burstiness: float, concurrency: int | None,
        requests: int, sweep: str | None, input_len: str, output_len: str, lengths: Path | None,
        prefix_len: int, prefixes: int, seed: int, goodput: Sequence[str], percentiles: str,
    ) -> Setup:  # fmt: skip
        """From the words of a command line. Raises LoadError, and OSError for a file that cannot be read."""
        from thrifty.loadtest.api import Endpoint
        from thrifty.loadtest.errors import LoadError
        from thrifty.loadtest.goodput import parse_objectives
        from thrifty.loadtest.lengths import Lengths, read_shapes
        from thrifty.loadtest.sweep import parse_rates
        from thrifty.loadtest.trials import Pace
        from thrifty.loadtest.workload import Workload

        if sweep is not None and not math.isinf(rate):
            raise LoadError("--sweep sets the rates itself; leave --rate out")
        for name, value in (("--rate", rate), ("--burstiness", burstiness)):
            if not value > 0:
                raise LoadError(f"{name} is {value}; it must be more than 0")
        bound = concurrency or (IN_CAPACITY if sweep is not None else None)
        return cls(
            endpoint=Endpoint(url, model, endpoint, key, temperature, ignore_eos, extra, timeout),
            workload=Workload(
                requests,
                Lengths.parse(input_len),
                Lengths.parse(output_len),
                None if lengths is None else read_shapes(lengths),
                prefix_len,
                prefixes,
                seed,
            ),
            pace=Pace(rate, burstiness, bound),
            swept=sweep is not None,
            sweep=None if sweep is None else parse_rates(sweep),
            objectives=parse_objectives(goodput),
            percentiles=_percentiles(percentiles),
        )


def run(setup: Setup) -> tuple[dict[str, Any], bool]:
    """The load's figures, JSON-ready, and whether Ctrl-C ended it before its time."""
    return asyncio.run(_run(setup))


async def _run(setup: Setup) -> tuple[dict[str, Any], bool]:
    from thrifty.loadtest.figures import details, figures
    from thrifty.loadtest.sweep import saturation
    from thrifty.loadtest.trials import Trials
    from thrifty.loadtest.workload import weigh

    document: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": setup.endpoint.kind,
        "model_id": setup.endpoint.model,
        "num_prompts": setup.workload.requests,
        **setup.pace.facts(),
    }
    scale = await weigh(setup.endpoint, setup.workload)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        trials = Trials(setup.endpoint, setup.workload, scale, progress, stop)
        if setup.swept:
            runs = await trials.sweep(setup.pace, setup.sweep, setup.objectives, setup.percentiles)
            at_rates = [one for one in runs if one["request_rate"] != "inf"]
            document |= {"runs": runs, "saturation_rate": saturation(at_rates)}
        else:
            measured = await trials.run(setup.pace)
            document |= figures(measured, setup.objectives, setup.percentiles) | details(measured)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return document, stop.is_set()


def show(document: dict[str, Any]) -> None:
    """The figures for people."""
    if "runs" in document:
        _show_sweep(document)
        return
    title = f"{document['model_id']}: {document['completed']} answers in {document['duration']:.1f} s"
    written, whole = document["output_throughput"], document["total_token_throughput"]
    read = f"{document['total_input_tokens']} read, {document['total_cached_tokens']} of them cached"
    rows = [
        ("requests a second", f"{document['request_throughput']:.2f}"),
        ("of them good", "-" if document["request_goodput"] is None else f"{document['request_goodput']:.2f}"),
        ("tokens a second", f"{written:.1f} written, {whole:.1f} in all"),
        ("tokens", f"{read}; {document['total_output_tokens']} written"),
        ("refused, failed", f"{document['rejected']}, {document['failed'] - document['rejected']}"),
    ]
    output.card(title, rows)
    names = {"ttft": "to the first token", "tpot": "a later token", "itl": "between pieces", "e2el": "whole answer"}
    parts = [key.removesuffix("_ttft_ms") for key in document if key.endswith("_ttft_ms") and not key.startswith("std")]
    times = [(word, *(f"{document[f'{part}_{name}_ms']:.1f}" for part in parts)) for name, word in names.items()]
    output.table("milliseconds", (Column("", number=False), *map(Column, parts)), times)
    _show_errors(document["errors"])


def _show_sweep(document: dict[str, Any]) -> None:
    columns = (
        Column("offered/s"),
        Column("answered/s", rank=1),
        Column("good/s", rank=1),
        Column("tokens/s", rank=2),
        Column("median TTFT ms", rank=2),
        Column("p99 TTFT ms", rank=3),
        Column("median TPOT ms", rank=2),
        Column("refused, failed", rank=3),
    )
    rows = [
        (
            str(run["request_rate"]),
            f"{run['request_throughput']:.2f}",
            "-" if run["request_goodput"] is None else f"{run['request_goodput']:.2f}",
            f"{run['output_throughput']:.1f}",
            f"{run['median_ttft_ms']:.0f}",
            f"{run.get('p99_ttft_ms', 0.0):.0f}",
            f"{run['median_tpot_ms']:.1f}",
            f"{run['rejected']}, {run['failed'] - run['rejected']}",
        )
        for run in document["runs"]
    ]
    output.table(f"{document['model_id']}: {document['num_prompts']} requests a run", columns, rows)
    rate = document["saturation_rate"]
    output.say("it kept up at no rate that was tried" if rate is None else f"it keeps up to {rate:g} requests a second")


def _show_errors(errors: Sequence[str]) -> None:
    """The first of each kind."""
    kinds = {error.split(":")[0]: error for error in reversed(errors) if error}
    for kind, error in kinds.items():
        count = sum(other.split(":")[0] == kind for other in errors)
        output.warn(f"{count} of {len(errors)} requests: {error}")


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
        if not all(0 <= share <= 100 for share in shares):
            raise ValueError
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of percentiles; write e.g. 50,90,99") from error
    return shares
