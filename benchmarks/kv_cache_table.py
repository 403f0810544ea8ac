"""Every KV-cache technique at several budgets, kvpress beside it; see `cache_table/program.py`, or --help."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.cache_table.program import main

    raise SystemExit(main())
