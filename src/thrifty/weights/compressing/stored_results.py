"""The results of a recipe on the disk: a finished technique is never run again, nor a finished unit of one.

Whatever kind a technique is, what it left in the model is on the disk when it is done, and the model's arrays are views
of files from then on: the peak of memory is what one technique holds at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thrifty.formats.linear import PackedLinear
from thrifty.models.config.model_config import as_dict, from_dict
from thrifty.models.model import Model, TensorReport
from thrifty.weights.compressing.pace import Pace
from thrifty.weights.compressing.stage_file import StageFile
from thrifty.weights.results import LAYERS, Phase, Result, Results

REST = "what is not made unit by unit"


class StoredResults(Results):
    """In a folder, a `StageFile` for every technique."""

    def __init__(self, folder: Path) -> None:
        self._folder = self.folder = folder
        self._watch: Callable[[int, int], None] | None = None
        self._steps_from: Callable[[int, Model], int] = lambda stage, model: 0
        self._tell: Callable[[Phase], None] | None = None
        self._names: Sequence[str] = ()  # of the techniques, by stage
        self._pace: Pace | None = None
        self._total = self._count = 0
        self._stages: dict[int, StageFile] = {}
        self._file: StageFile | None = None
        self._before: dict[int, str] = {}  # names of the parts that a stage was given, by identity
        self._held: list[Any] = []  # those parts, so that no identity is used twice
        self._made: dict[str, Any] = {}  # by name: what the stage keeps in its file

    def watch(self, model: Model, left: Callable[[int, Model], int], watch: Callable[[int, int], None] | None) -> None:
        """Tell of every step from now on. left: the steps from a stage on, as far as the model tells them."""
        self._steps_from, self._watch = left, watch
        self._total = left(0, model)
        if watch is not None:
            watch(0, self._total)

    def phases(self, techniques: Sequence[str], tell: Callable[[Phase], None] | None) -> None:
        """Tell of what no step tells of from now on. techniques: their names, by stage."""
        self._names, self._tell = techniques, tell

    def tell(self, phase: Phase) -> None:
        """See `Results`."""
        if self._pace is not None and phase.what != LAYERS:
            self._pace.restart()
        if self._tell is not None:
            self._tell(phase)

    def units(self, stage: int) -> int:
        """How many units of a stage are there from before."""
        return len(self._stage(stage).unit_names)

    def is_whole(self, stage: int) -> bool:
        """Whether a stage was finished before."""
        return self._stage(stage).whole is not None

    def restore(self, stage: int, model: Model) -> bool:
        """See `Results`."""
        file = self._stage(stage)
        if file.whole is None:
            return False
        made: dict[str, Any] = {result.name: result.value for unit in file.unit_names for result in file.of(unit) or ()}
        facts, linears, norms = file.whole, model.linears, model.norms
        model.linears = {name: made[name] if old is None else linears[old] for name, old in facts["linears"].items()}
        model.norms = {name: made[name] if old is None else norms[old] for name, old in facts["norms"].items()}
        model.report[:] = [TensorReport(**entry) for entry in facts["report"]]
        model.config = from_dict(facts["config"])
        return True

    def begin(self, stage: int, model: Model) -> None:
        """See `Results`."""
        self._file = self._stage(stage)
        left = self._steps_from(stage, model)  # one before may have left layers out
        self._total = self._count + left
        self._pace = Pace(self._names[stage], left - self._steps_from(stage + 1, model) - 1) if self._names else None
        self._held = [*model.linears.values(), *model.norms.values()]
        self._before = {id(value): name for name, value in [*model.linears.items(), *model.norms.items()]}
        self._made = {}

    def of(self, unit: str) -> Sequence[Result] | None:
        """See `Results`."""
        assert self._file is not None, "a stage has begun"
        made = self._file.of(unit)
        self._made |= {result.name: result.value for result in made or ()}
        return made

    def keep(self, unit: str, result: Result) -> Result:
        """See `Results`. What is returned lies in the file."""
        assert self._file is not None, "a stage has begun"
        kept = self._file.keep(unit, result)
        self._made[kept.name] = kept.value
        return kept

    def close(self, unit: str) -> None:
        """See `Results`."""
        assert self._file is not None, "a stage has begun"
        self._file.close(unit)
        self._done()
        phase = None if self._pace is None else self._pace.closed(unit)
        if phase is not None:
            self.tell(phase)

    def finish(self, stage: int, model: Model) -> None:
        """See `Results`. What the technique changed otherwise than unit by unit is written now."""
        assert self._file is not None, "a stage has begun"
        linears = {name: self._before.get(id(value)) for name, value in model.linears.items()}
        norms = {name: self._before.get(id(value)) for name, value in model.norms.items()}
        self._keep_rest(model, linears, norms)
        self._file.finish(
            {
                "linears": linears,
                "norms": norms,
                "report": [asdict(entry) for entry in model.report],
                "config": as_dict(model.config),
            }
        )
        self._held, self._before, self._made = [], {}, {}
        self._done()

    def shut(self) -> None:
        """Nothing more is kept."""
        for file in self._stages.values():
            file.shut()

    def _stage(self, stage: int) -> StageFile:
        if stage not in self._stages:
            self._stages[stage] = StageFile(self._folder / f"stage-{stage}")
        return self._stages[stage]

    def _keep_rest(self, model: Model, linears: dict[str, str | None], norms: dict[str, str | None]) -> None:
        """Write what the stage made and is not in its file, and put what lies there into the model."""
        new = [name for name, old in linears.items() if old is None and model.linears[name] is not self._made.get(name)]
        for name in new:
            kept = self.keep(REST, Result(name, model.linears[name])).value
            assert isinstance(kept, PackedLinear)
            model.linears[name] = kept
        changed = {
            name: self.keep(REST, Result(name, model.norms[name])).value
            for name, old in norms.items()
            if old is None and model.norms[name] is not self._made.get(name)
        }
        if new or changed:
            model.norms = {**model.norms, **changed}  # type: ignore[dict-item]
            assert self._file is not None
            self._file.close(REST)

    def _done(self) -> None:
        self._count += 1
        if self._watch is not None:
            self._watch(self._count, max(self._total, self._count))
