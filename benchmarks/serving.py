"""Thrifty's server beside its peers', and beside its own engine; see `serving_comparison/program.py`, or --help."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.serving_comparison.program import main

    raise SystemExit(main())
