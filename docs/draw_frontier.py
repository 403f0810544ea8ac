"""Draw docs/frontier.svg from `thrifty fit … --json`: what each recipe needs, and what it costs in quality.

thrifty fit smollm2-135m --memory 150MB --context 4096 --json > fit.json && python docs/draw_frontier.py fit.json
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1130, 430, 70, 30, 50, 60
LEGEND = 690  # left edge of the legend
FLOOR = 1e-3  # KL below this is drawn on the axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fit", type=Path, help="what `thrifty fit --json` printed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("frontier.svg"))
    arguments = parser.parse_args()
    last_line = arguments.fit.read_text(encoding="utf-8").strip().splitlines()[-1]
    arguments.out.write_text(draw(json.loads(last_line)), encoding="utf-8")


def draw(document: dict[str, Any]) -> str:
    """The chart: megabytes needed against mean KL divergence, both measured; the budget as a line.

    Of the recipes that ran, those on the frontier and those that were measured to the end.
    """
    measured = [row for row in document["candidates"] if row["grid"] != "off the grid" and row["stage"] != "predicted"]
    rows = [row for row in measured if row["on_frontier"] or row["stage"] == "tasks"]
    budget = document["memory_bytes"] / 1e6
    needs = [row["need_peak_bytes"] / 1e6 for row in rows]
    low, high = min([*needs, budget]) * 0.97, max([*needs, budget]) * 1.03
    top = 10 ** math.ceil(math.log10(max(_kl(row) for row in rows)))

    def x(megabytes: float) -> float:
        return LEFT + (megabytes - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(kl: float) -> float:
        share = (math.log10(max(kl, FLOOR)) - math.log10(FLOOR)) / (math.log10(top) - math.log10(FLOOR))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x, y, low, high, top), _budget_line(x(budget), budget)]
    chosen = document["best"]["recipe"]
    parts += [
        _point(number, x(row["need_peak_bytes"] / 1e6), y(_kl(row)), row, chosen) for number, row in enumerate(rows, 1)
    ]
    title = f"{document['model']} at {document['context']} tokens: bytes needed and quality lost"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="26" font-size="15" fill="#222">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def _kl(row: dict[str, Any]) -> float:
    return float(row["quality"]["kl"]["value"]) if row["quality"] else 0.0


def _axes(x: Any, y: Any, low: float, high: float, top: float) -> str:
    parts = []
    for megabytes in range(math.ceil(low / 10) * 10, int(high) + 1, 10):
        parts.append(
            f'<text x="{x(megabytes):.1f}" y="{HEIGHT - 38}" text-anchor="middle" fill="#555">{megabytes}</text>'
        )
    kl = FLOOR
    while kl <= top * 1.001:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(kl):.1f}" y2="{y(kl):.1f}" stroke="#e4e4e4"/>'
            f'<text x="{LEFT - 8}" y="{y(kl) + 4:.1f}" text-anchor="end" fill="#555">{kl:g}</text>'
        )
        kl *= 10
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle" fill="#222">'
        "MB: weights, cache peak and workspace</text>"
        f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle" fill="#222">'
        "KL to the model as shipped (nats; lower is better)</text>"
    )
    return "".join(parts)


def _budget_line(at: float, budget: float) -> str:
    return (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#c0392b" stroke-dasharray="5 4"/>'
        f'<text x="{at + 5:.1f}" y="{TOP + 10}" fill="#c0392b">budget {budget:g} MB</text>'
    )


def _point(number: int, x: float, y: float, row: dict[str, Any], chosen: str) -> str:
    """A numbered dot, and its line in the legend at the top right."""
    best = row["recipe"] == chosen
    colour = "#1e8449" if best else "#2471a3" if row["fits"] else "#888888"
    weight = ' font-weight="bold"' if best else ""
    line = TOP + 14 * number
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{colour}" fill-opacity="0.85"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" font-size="9" fill="#ffffff">{number}</text>'
        f'<text x="{LEGEND}" y="{line}" fill="{colour}"{weight}>{number}  {escape(row["recipe"])}</text>'
    )


if __name__ == "__main__":
    main()
