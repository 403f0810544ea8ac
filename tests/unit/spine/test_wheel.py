"""The wheel: built for every processor of its kind, and soon enough."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECONDS = 150  # on two cores


def test_nothing_is_built_for_this_very_processor() -> None:
    for path in (ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert not re.search(r"-m(arch|tune|cpu)=", path.read_text()), path.name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_builds_in_time_and_holds_kernels_and_data(tmp_path: Path) -> None:
    started = time.perf_counter()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, f"--config-settings=build-dir={tmp_path / 'build'}"], check=True, timeout=580)
    seconds = time.perf_counter() - started
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("thrifty/kernels/native/_native") for name in names)
    for suffix in (
        "texts/workshop.txt",
        "models/recall/model.safetensors",
        "models/recall_hybrid/model.safetensors",
        "page/report.html.j2",
        "page/vendor/chart.umd.min.js",
    ):
        assert any(name.endswith(suffix) for name in names), f"the wheel lacks {suffix}"
    assert seconds <= SECONDS, f"the wheel took {seconds:.0f} s"
