"""What compressing a model takes: memory of the process at its peak, bytes on the disk on the way, seconds.

    python benchmarks/compress_memory.py [--model smollm2-135m] [--recipe FILE]

Runs `thrifty compress` as a user does (without --recipe: rtn, 4 bits in groups of 32) with the converted copy already
made, and looks at its process and its hidden folder ten times a second. Beside it: what a process holds that only opens
the model, and the model's bytes. A line of JSON ends the output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

PROGRAM = [sys.executable, "-m", "thrifty.cli"]
OPENED = """
import sys
from thrifty.models import load
from thrifty.storage.process import peak_resident
model = load(sys.argv[1])
print(peak_resident(), model.nbytes)
"""
RECIPE = '[[weights]]\ntechnique = "rtn"\nbits = 4\ngroup = 32\n'


def watched(words: list[str], hidden: Path) -> tuple[dict[str, Any], int, int, float]:
    """The last line of a command as JSON, the highest bytes of its process and of a folder, and seconds."""
    begin, held, disk = time.perf_counter(), 0, 0
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, text=True) as run:
        process = psutil.Process(run.pid)
        while run.poll() is None:
            try:
                held = max(held, process.memory_info().rss)
                disk = max(disk, sum(file.stat().st_blocks * 512 for file in hidden.rglob("*") if file.is_file()))
            except (psutil.Error, OSError):  # it ended, or its folder appeared under its name
                continue
            time.sleep(0.1)
        assert run.stdout is not None
        lines = run.stdout.read().splitlines()
    if run.returncode:
        sys.exit(f"thrifty {' '.join(words)} ended with {run.returncode}")
    return json.loads(lines[-1]), held, disk, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipe", type=Path)
    arguments = parser.parse_args()
    opened = subprocess.run([sys.executable, "-c", OPENED, arguments.model], capture_output=True, text=True, check=True)
    baseline, weights = map(int, opened.stdout.split())
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name), arguments.recipe or Path(name) / "recipe.toml"
        if arguments.recipe is None:
            recipe.write_text(RECIPE)
        words = ["compress", arguments.model, "--recipe", str(recipe), "-o", str(folder / "out"), "--json"]
        told, held, disk, seconds = watched(words, folder / ".out.compressing")
        result = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
    figures = {
        "model": arguments.model,
        "model_bytes": weights,
        "opened_process_bytes": baseline,
        "peak_process_bytes": max(held, told["run"]["peak_process_bytes"]),
        "peak_disk_bytes": disk,
        "result_bytes": result,
        "bits_per_weight": told["totals"]["bits_per_weight"],
        "layers_bits_per_weight": told["totals"]["layers_bits_per_weight"],
        "seconds": round(seconds, 2),
    }
    for key, value in figures.items():
        shown = f"{value / 1e6:.1f} MB" if key.endswith("bytes") else value
        print(f"{key.replace('_', ' '):24} {shown}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
