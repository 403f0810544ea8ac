"""The report of a fit: one HTML page that needs nothing else, neither a network nor JavaScript to be read.

python -m thrifty.frontier.report.report fit.json > report.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from thrifty.errors import ThriftyError
from thrifty.frontier.report import plot as report_plot
from thrifty.frontier.report import view as report_view
from thrifty.frontier.report.document import Document, ReportError, read
from thrifty.frontier.report.drawing import drawing

PAGE = Path(__file__).with_name("page")


def render(document: Mapping[str, Any]) -> str:
    """The page for what `thrifty fit --json` prints.

    Model names, prompts, answers and labels are escaped, and the page's own policy refuses every request and every
    script but its two. Raises ReportError that names the field where the document is something else.
    """
    fit = read(document)
    plot = report_plot.plot(fit)
    kinds = plot.kinds if plot else []
    rows = [report_view.row(fit, index, kind) for index, kind in enumerate(kinds)]
    scripts = [_script("vendor/chart.umd.min.js"), _script("report.js")]
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        fit=fit,
        view=report_view,
        columns=report_view.COLUMNS,
        tables=_tables(fit, rows),
        plot=plot,
        drawing=drawing(plot) if plot else None,
        data=_data(plot, rows),
        policy=_policy(scripts),
        scripts=[Markup(script) for script in scripts],
        style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
    )


def _tables(fit: Document, rows: Sequence[report_view.Row]) -> dict[str, list[report_view.Row]]:
    """Rows by table, smallest first: what was measured, what was predicted only, what is off the grid."""
    ordered = sorted(rows, key=lambda row: fit.candidates[row.index].need_peak_bytes)
    tables: dict[str, list[report_view.Row]] = {"measured": [], "predicted": [], "off": []}
    for row in ordered:
        candidate = fit.candidates[row.index]
        name = "off" if not candidate.servable else "measured" if candidate.measured else "predicted"
        tables[name].append(row)
    return tables


def _data(plot: report_plot.Plot | None, rows: Sequence[report_view.Row]) -> Markup:
    """What the script reads, as JSON that can stand in a script tag."""
    drawn = None if plot is None else plot.as_dict()
    points = [{"label": row.cells[0].text, "badges": row.badges, "figures": report_view.figures(row)} for row in rows]
    text = json.dumps({"plot": drawn, "points": points}, ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _script(name: str) -> str:
    """A script of the package; the reference to a source map is left out, for a browser would fetch it."""
    lines = (PAGE / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("//# sourceMappingURL"))


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"


def main(arguments: Sequence[str]) -> int:
    """Print the page for the file named, whose last line or whole is the document."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m thrifty.frontier.report.report fit.json > report.html\n")
        return 2
    try:
        sys.stdout.write(render(_load(Path(arguments[0]))))
    except ThriftyError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(
            f"cannot read '{path}' as JSON: {error}. Make one with thrifty fit … --json > {path}"
        ) from error
    if not isinstance(document, dict):
        raise ReportError(f"'{path}' holds a {type(document).__name__}, not the object that thrifty fit --json prints")
    return document


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
