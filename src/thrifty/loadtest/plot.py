"""A sweep or a run as a drawing in SVG, for light and dark pages, without any package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 64, 24, 36, 44
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}.grid{stroke:#ddd}"
    ".axis{stroke:#888}polyline{fill:none;stroke-width:2}.limit{stroke:#c33;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}svg{background:#1b1b1b}}"
)
COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a")


def sweep_plot(runs: Sequence[dict[str, Any]], objectives: dict[str, float]) -> str:
    """Three drawings over the offered rate: requests answered and good, time to the first token, time a token."""
    rates = [float(run["request_rate"]) for run in runs]
    served = {"answered": [run["request_throughput"] for run in runs]}
    if objectives:
        served["good"] = [run["request_goodput"] for run in runs]
    panels = [_panel("requests a second", "offered requests a second", rates, served, None, 0)]
    for place, (name, title) in enumerate((("ttft", "ms to the first token"), ("tpot", "ms a later token")), 1):
        series = {
            word: [run[f"{key}_{name}_ms"] for run in runs] for word, key in (("median", "median"), ("p99", "p99"))
        }
        panels.append(_panel(title, "offered requests a second", rates, series, objectives.get(name), place * HEIGHT))
    return _document(panels)


def run_plot(document: dict[str, Any], objectives: dict[str, float]) -> str:
    """Two drawings of one run: what share of its requests had their first token, and each later one, within a time."""
    panels = []
    tpots = [
        sum(gaps) / (tokens - 1)
        for gaps, tokens in zip(document["itls"], document["output_lens"], strict=True)
        if tokens > 1
    ]
    answered = [first for first, tokens in zip(document["ttfts"], document["output_lens"], strict=True) if tokens]
    named = (("ttft", "ms to the first token", answered), ("tpot", "ms a later token, by request", tpots))
    for place, (name, title, seconds) in enumerate(named):
        values = sorted(1e3 * value for value in seconds) or [0.0]
        shares = {"share": [(at + 1) / len(values) for at in range(len(values))]}
        panels.append(_panel("share of requests", title, values, shares, None, place * HEIGHT, objectives.get(name)))
    return _document(panels)


def round_steps(highest: float) -> list[float]:
    """From 0 up to `highest` in four to nine steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    step = max(factor * power for factor in (1, 2, 5) if factor * power * 4 <= highest * (1 + 1e-9))
    return [round(place * step, 12) for place in range(math.floor(highest / step * (1 + 1e-9)) + 1)]


def _document(panels: Sequence[str]) -> str:
    height = HEIGHT * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f"<style>{STYLE}</style>{''.join(panels)}</svg>\n"
    )


def _panel(
    title: str,
    below: str,
    xs: Sequence[float],
    series: dict[str, list[float]],
    limit: float | None,
    top: int,
    limit_x: float | None = None,
) -> str:
    """One drawing. limit, limit_x: an objective, drawn across or upright. top: where it begins in the document."""
    last = max([*xs, limit_x or 0.0]) or 1.0
    highest = max([limit or 0.0, *(value for values in series.values() for value in values)]) * 1.05 or 1.0
    bottom = HEIGHT - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / last
        return round(across, 1), round(bottom - (bottom - TOP) * y / highest, 1)

    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    for value in round_steps(highest):
        _, y = at(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in round_steps(last):
        x, _ = at(value, 0)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(below)}</text>')
    for place, (name, values) in enumerate(series.items()):
        points = " ".join("{},{}".format(*at(x, y)) for x, y in zip(xs, values, strict=True))
        parts.append(f'<polyline stroke="{COLOURS[place]}" points="{points}"/>')
        x = WIDTH - RIGHT - 90 * (len(series) - place)
        parts.append(f'<text x="{x}" y="20" style="fill:{COLOURS[place]}">{escape(name)}</text>')
    if limit is not None:
        _, y = at(0, limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    if limit_x is not None:
        x, _ = at(limit_x, 0)
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
    return f'<g transform="translate(0 {top})">{"".join(parts)}</g>'
