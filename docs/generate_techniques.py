"""Write docs/techniques.md from the cards. `--check` only compares, and fails where the page is out of date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from thrifty import registry

PAGE = Path(__file__).with_name("techniques.md")
HEAD = """# Techniques

Generated from the cards by `make docs`; `thrifty techniques NAME` shows one with its options.

| technique | stage | paper | what it does | the paper's claim |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page as Markdown."""
    rows = []
    for stage in registry.STAGES:
        for name in registry.names(stage):
            card = registry.describe(stage, name)
            title = f"{card['title']} ({card['paper']}, {card['year']})"
            rows.append(f"| `{name}` | {stage} | {title} | {card['mechanism']} | {card['claim']} |")
    return HEAD + "\n".join(rows) + "\n"


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
