"""The wheel: built for every processor of its kind, and soon enough."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECONDS = 300  # of processors: two cores take half of it


def spent() -> float:
    """Seconds that processors worked for programs which this one started: the same beside other work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_nothing_is_built_for_this_very_processor() -> None:
    for path in (ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert not re.search(r"-m(arch|tune|cpu)=", path.read_text()), path.name


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_a_wheel_builds_in_time_and_holds_kernels_and_data(tmp_path: Path) -> None:
    started = spent()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, f"--config-settings=build-dir={tmp_path / 'build'}"], check=True, timeout=1200)
    seconds = spent() - started
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("thrifty/kernels/native/_native") for name in names)
    for suffix in (
        "texts/workshop.txt",
        "models/recall/model.safetensors",
        "models/recall_hybrid/model.safetensors",
        "models/mixture/model.safetensors",
        "models/letters_diffusion/model.safetensors",
        "models/letters_twin/model.safetensors",
        "page/report.html.j2",
        "page/vendor/chart.umd.min.js",
    ):
        assert any(name.endswith(suffix) for name in names), f"the wheel lacks {suffix}"
    assert seconds <= SECONDS, f"the wheel took {seconds:.0f} s of processors"
