"""What a run has found so far, on disk after every round, so that it can go on where it was cut off."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.comparison.figures import Sample
from benchmarks.comparison.variants import Cell


@dataclass
class State:
    """settings: what a resumed run must share. first: seconds from process start to first token, by variant.
    screened: variants whose screening is over. voids: rounds that were thrown away. errors: by variant.
    """

    settings: dict[str, Any]
    bandwidth: float | None = None
    samples: list[Sample] = field(default_factory=list)
    first: dict[str, list[float]] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    screened: list[str] = field(default_factory=list)
    voids: int = 0
    noisy: bool = False

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)


def resume(path: Path, settings: dict[str, Any]) -> State:
    """The state of a file, or a new one where there is none. Raises SystemExit where it is of another run."""
    if not path.exists():
        return State(settings)
    try:
        held = json.loads(path.read_text())
        held["samples"] = [Sample(**(one | {"cell": Cell(**one["cell"])})) for one in held["samples"]]
        state = State(**held)
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{path} is no state of a comparison ({error}); remove it to start anew") from error
    if state.settings != settings:
        changed = {key: state.settings.get(key) for key in settings if state.settings.get(key) != settings[key]}
        raise SystemExit(f"{path} is of a run with other settings ({changed}); give these, or remove it to start anew")
    return state
