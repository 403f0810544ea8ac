"""From measured samples to winners, medians and ratios. Pure: nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.variants import EXACT, INT2KV, SMALL, THRIFTY, Cell, Variant

PREFILL, DECODE = "prefill", "decode"
SCREENING = 0  # the round of screening; measured rounds count from 1


@dataclass(frozen=True)
class Sample:
    """One timing of one variant in one cell. Rates in tokens a second, of all sequences together; prefill is None
    where an earlier prefill was used again. peak_rss: bytes, since its process started.
    """

    variant: str
    cell: Cell
    round: int
    decode: float
    prefill: float | None
    peak_rss: int
    bytes_per_token: int | None = None

    def rate(self, metric: str) -> float | None:
        """Tokens a second of prefill or decode."""
        return self.prefill if metric == PREFILL else self.decode


@dataclass(frozen=True)
class Figure:
    """One ratio: Thrifty's variant over the best peer in a cell. exact: among peers with the shipped values."""

    name: str
    cell: Cell
    metric: str
    variant: str
    exact: bool = False


def figures(field: Sequence[Cell], main: str) -> list[Figure]:
    """Every ratio of a run over these cells. main: the variant of Thrifty that stands for it."""
    found = []
    largest = max(cell.context for cell in field)
    for cell in field:
        found.append(Figure(f"decode@{cell}", cell, DECODE, main))
        if cell.batch == 1:
            found.append(Figure(f"prefill@{cell}", cell, PREFILL, main))
    if main != EXACT:
        if Cell(SMALL) in field:
            found.append(Figure(f"decode@{SMALL}:exact", Cell(SMALL), DECODE, EXACT, exact=True))
        found.append(Figure(f"decode@{largest}:int2kv", Cell(largest), DECODE, INT2KV))
    return found


def medians(samples: Iterable[Sample], metric: str, cell: Cell) -> dict[str, float]:
    """The median rate of every variant that has one in the cell."""
    rates: dict[str, list[float]] = {}
    for sample in samples:
        rate = sample.rate(metric)
        if sample.cell == cell and rate is not None:
            rates.setdefault(sample.variant, []).append(rate)
    return {variant: statistics.median(found) for variant, found in rates.items()}


def winners(figure: Figure, field: Sequence[Variant], samples: Sequence[Sample]) -> list[Variant]:
    """The variants that go on for a figure: Thrifty's own, and each peer's fastest in screening.

    Where an engine was not screened in the figure's cell, its largest smaller context of that batch decides; where in
    none, the first of the field goes on.
    """
    found = [variant for variant in field if variant.engine == THRIFTY and variant.name == figure.variant]
    for engine in dict.fromkeys(variant.engine for variant in field if variant.engine != THRIFTY):
        candidates = {v.key: v for v in field if v.engine == engine and _admitted(v, figure)}
        rates = _screened(figure, [sample for sample in samples if sample.variant in candidates])
        if candidates:
            found.append(candidates[max(rates, key=lambda key: rates[key]) if rates else next(iter(candidates))])
    return found


def _screened(figure: Figure, samples: Sequence[Sample]) -> dict[str, float]:
    """Rates in the largest screened context that is not larger than the figure's."""
    screened = [sample for sample in samples if sample.round == SCREENING and sample.cell.batch == figure.cell.batch]
    contexts = [sample.cell.context for sample in screened if sample.cell.context <= figure.cell.context]
    if not contexts:
        return {}
    return medians(screened, figure.metric, Cell(max(contexts), figure.cell.batch))


def _admitted(variant: Variant, figure: Figure) -> bool:
    return variant.measured_in(figure.cell) and (variant.exact or not figure.exact)


def ratio(figure: Figure, field: Sequence[Variant], samples: Sequence[Sample]) -> tuple[float, str] | None:
    """Thrifty's median over that of the best peer, and which peer; None where either was not measured."""
    rates = medians([sample for sample in samples if sample.round != SCREENING], figure.metric, figure.cell)
    own = [v for v in field if v.engine == THRIFTY and v.name == figure.variant and v.key in rates]
    peers = [v for v in field if v.engine != THRIFTY and v.key in rates and _admitted(v, figure)]
    if not own or not peers:
        return None
    best = max(peers, key=lambda variant: rates[variant.key])
    return rates[own[0].key] / rates[best.key], best.key


def roofline(cell: Cell, variant: str, samples: Sequence[Sample], bandwidth: float) -> float | None:
    """The share of the roofline that a variant's decoding reaches. bandwidth: GB/s."""
    from thrifty.evaluation.roofline.roofline import Roofline

    counted = [sample for sample in samples if sample.round != SCREENING and sample.variant == variant]
    rate = medians(counted, DECODE, cell).get(variant)
    read = [sample.bytes_per_token for sample in counted if sample.cell == cell and sample.bytes_per_token]
    if rate is None or not read:
        return None
    return Roofline(round(statistics.median(read)), bandwidth).fraction(rate)


def rows(
    field: Sequence[Variant], samples: Sequence[Sample], first: dict[str, list[float]], kl: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for every variant and cell that was measured in rounds (medians over these; memory is the least of all
    peaks, since a process that has seen a longer context still holds it).
    """
    found = []
    for variant in field:
        own = [sample for sample in samples if sample.variant == variant.key]
        for cell in sorted({sample.cell for sample in own if sample.round != SCREENING}):
            here = [sample for sample in own if sample.cell == cell]
            counted = [sample for sample in here if sample.round != SCREENING]
            found.append(
                {
                    "engine": variant.engine,
                    "variant": variant.name,
                    "context": cell.context,
                    "batch": cell.batch,
                    "prefill_tok_s": _rounded(medians(counted, PREFILL, cell).get(variant.key), 1),
                    "decode_tok_s": _rounded(medians(counted, DECODE, cell).get(variant.key), 1),
                    "peak_rss_mb": round(min(sample.peak_rss for sample in here) / 1e6, 1),
                    "first_token_s": _rounded(statistics.median(first[variant.key]) if variant.key in first else None),
                    "kl": _rounded(kl.get(variant.key), 5),
                    "rounds": len(counted),
                }
            )
    return found


def document(
    field: Sequence[Variant],
    in_cells: Sequence[Cell],
    main: str,
    samples: Sequence[Sample],
    *,
    threads: int,
    bandwidth: float,
    first: dict[str, list[float]],
    kl: dict[str, float],
) -> dict[str, Any]:
    """The result, JSON-ready; a ratio is null where a side of it was not measured."""
    found = {figure.name: ratio(figure, field, samples) for figure in figures(in_cells, main)}
    key = next((v.key for v in field if v.engine == THRIFTY and v.name == main), "")
    return {
        "threads": threads,
        "bandwidth_gb_s": round(bandwidth, 2),
        "results": rows(field, samples, first, kl),
        "ratios": {name: _rounded(value[0] if value else None) for name, value in found.items()},
        "best_peers": {name: value[1] if value else None for name, value in found.items()},
        "roofline": {
            f"decode@{cell}": _rounded(roofline(cell, key, samples, bandwidth)) for cell in in_cells if cell.batch == 1
        },
    }


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
