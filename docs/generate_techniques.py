"""Write docs/techniques.md from the cards. `--check` only compares, and fails where the page is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty import registry

PAGE = Path(__file__).with_name("techniques.md")
HEAD = """# Techniques

Generated from the cards by `make docs`; `thrifty techniques NAME` shows one with its options.

| technique | stage | paper | what it does | the paper's claim |
|---|---|---|---|---|
"""
LIMITS = """
## Limits, and where these techniques depart from their papers
"""


def page() -> str:
    """The whole page as Markdown."""
    cards = [registry.describe(stage, name) for stage in registry.STAGES for name in registry.names(stage)]
    told = "\n".join(line for card in cards for line in limits(card))
    return HEAD + "\n".join(map(row, cards)) + "\n" + LIMITS + told + "\n"


def row(card: dict[str, Any]) -> str:
    """A technique's line of the table."""
    title = f"{card['title']} ({card['paper']}, {card['year']})"
    return f"| `{card['name']}` | {card['stage']} | {title} | {card['mechanism']} | {card['claim']} |"


def limits(card: dict[str, Any]) -> Iterator[str]:
    """A technique's lines below it; none where its card has no limits."""
    if card["limits"]:
        yield f"\n### {card['name']}\n"
        yield from (f"- {limit}" for limit in card["limits"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/techniques.md is out of date: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
