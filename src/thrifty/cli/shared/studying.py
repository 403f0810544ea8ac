"""Running `thrifty study`: model, items, state and progress around a study."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import opening, output
from thrifty.cli.shared.progress import progress
from thrifty.cli.shared.ticker import seconds

if TYPE_CHECKING:
    from thrifty.evaluation.comparison import TaskItems
    from thrifty.evaluation.studies.harness.grid import Grid
    from thrifty.evaluation.studies.harness.running import Run
    from thrifty.evaluation.studies.harness.state import StudyState
    from thrifty.evaluation.studies.harness.study import Format, Study
    from thrifty.models.model import Model


@dataclass(frozen=True)
class StudyOptions:
    """What the command is asked for. weights, caches: names of formats, None for all. methods, bits, repair: formats of
    weights from the registry, as `methods.formats` reads them; no method: the study's own. tasks: None for the study's
    own. batches: none for no served rates.
    """

    name: str
    model: str
    weights: tuple[str, ...] | None
    caches: tuple[str, ...] | None
    recipe: Path | None
    tasks: tuple[str, ...] | None
    items: int
    length: int
    batches: tuple[int, ...]
    seed: int
    minutes: float | None
    state: Path | None
    fresh: bool
    threads: int | None
    native: bool | None
    methods: tuple[str, ...] = ()
    bits: tuple[int, ...] | None = None
    repair: int = 0

    def setting(self, study: Study, model: Model) -> dict[str, Any]:
        """What a state must share to be continued: what answers depend on, however many there are."""
        import thrifty
        from thrifty.kernels import dispatch

        return {
            "study": self.name,
            "thrifty": thrifty.__version__,
            "model": model.version,
            "off_grid": study.off_grid,
            "length": self.length,
            "seed": self.seed,
            "native": dispatch.native() is not None if self.native is None else self.native,
        }


def run(asked: StudyOptions) -> dict[str, Any]:
    """Run a study, as far as its minutes or Ctrl-C let it, and return its document."""
    from thrifty.evaluation import studies
    from thrifty.evaluation.studies.harness.document import document
    from thrifty.evaluation.studies.harness.figures import Figures
    from thrifty.evaluation.studies.harness.grid import grid
    from thrifty.evaluation.studies.harness.running import Run

    study = studies.load(asked.name)
    own = opening.read_recipe(asked.recipe) if asked.recipe is not None else None
    cells = grid(study, asked.weights, asked.caches, own, _formats(asked))
    with ExitStack() as opened:
        model = _loaded(asked, study)
        work = _work(asked, study, model)
        state = opened.enter_context(_state(asked, asked.setting(study, model)))
        measured = Run(
            model,
            cells,
            work,
            state,
            length=asked.length,
            batches=asked.batches,
            minutes=asked.minutes,
            threads=asked.threads,
            native=asked.native,
        )
        interrupted = _watched(measured, asked.minutes)
        result = document(study, measured, Figures(cells, work, state, study.aside))
    return _header(asked, model, list(work)) | result | {"interrupted": interrupted}


def _formats(asked: StudyOptions) -> tuple[Format, ...]:
    """The formats of weights that are named, none for the study's own. Raises GridError where widths or a repair are
    asked for without a method to have them.
    """
    from thrifty.evaluation.studies.harness.grid import GridError
    from thrifty.evaluation.studies.harness.methods import formats

    if asked.methods:
        return formats(asked.methods, asked.bits, asked.repair)
    if asked.bits is not None or asked.repair:
        raise GridError("--bits and --repair belong to --methods: name some, such as --methods rtn,gptq, or all")
    return ()


def _loaded(asked: StudyOptions, study: Study) -> Model:
    from thrifty.api import open_model
    from thrifty.weights.offgrid import packed_view

    with opening.loading(asked.model) as converting:
        model = open_model(asked.model, threads=asked.threads, progress=converting)
        return packed_view(model) if study.off_grid else model


def _work(asked: StudyOptions, study: Study, model: Model) -> dict[str, TaskItems]:
    """The tasks with their items, by label. Raises TaskError for an unknown task, PromptError for one that scores pairs
    of answers, and for a length that leaves no room.
    """
    from thrifty.evaluation import tasks
    from thrifty.evaluation.comparison import TaskItems
    from thrifty.evaluation.scoring import check_alone

    with output.waiting("making the questions"):
        chosen = tasks.parse_all(asked.tasks or study.tasks, length=asked.length)
        check_alone(chosen, "a study")
        tokenizer = model.require_tokenizer()
        made = [TaskItems(task, tuple(task.items(tokenizer, asked.items, asked.seed))) for task in chosen]
    return dict(zip(tasks.labels(chosen), made, strict=True))


def _state(asked: StudyOptions, setting: dict[str, Any]) -> StudyState:
    from thrifty.evaluation.studies.harness.state import StudyState, default_path

    state = StudyState(asked.state or default_path(asked.name, setting), setting, fresh=asked.fresh)
    if len(state):
        output.note(f"going on with {len(state)} records in {state.path} (--fresh forgets them)")
    return state


def _watched(measured: Run, minutes: float | None) -> bool:
    """Tell the time, then run behind a progress bar; True where Ctrl-C ended it."""
    try:
        with output.waiting("measuring how long it will take"):
            expected = measured.prepare()
        _say_plan(measured, expected, minutes)
        with progress("answers", measured.total, float("inf") if minutes is None else 60 * minutes) as bar:
            for step in measured.steps():
                bar.total = step.total
                bar.done = step.done - 1
                bar.advance()
    except KeyboardInterrupt:
        output.note("stopped: what is done is kept; the same command goes on")
        return True
    finally:
        for label, reason in measured.skipped.items():
            output.warn(f"{label} was left out: {reason}")
    return False


def _say_plan(measured: Run, expected: float, minutes: float | None) -> None:
    grid: Grid = measured.grid
    output.note(
        f"{len(grid.scored)} cells and {len(grid.controls)} controls, {measured.asked} items of every task: "
        f"{measured.total} answers. This will take about {seconds(expected)}"
        + ("" if minutes is None else f", at most {minutes:g} min")
    )
    if measured.asked < measured.items:
        output.warn(
            f"the minutes are enough for {measured.asked} of {measured.items} items; the same command with more "
            "--minutes goes on from there"
        )
    for control, reason in grid.missing:
        output.warn(f"the control '{control.name}' cannot be run: {reason}")


def _header(asked: StudyOptions, model: Model, tasks: Sequence[str]) -> dict[str, Any]:
    import thrifty
    from thrifty.evaluation.roofline.machine import cores, cpu_name
    from thrifty.kernels import dispatch

    return {
        "study": asked.name,
        "model": asked.model,
        "model_version": model.version,
        "thrifty": thrifty.__version__,
        "machine": f"{cpu_name()} × {cores()}",
        "threads": asked.threads or dispatch.threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": list(tasks),
        "length": asked.length,
        "seed": asked.seed,
    }
