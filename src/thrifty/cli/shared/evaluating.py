"""Running `thrifty eval`: models, engines, records and progress around an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import opening, output
from thrifty.cli.shared.progress import progress
from thrifty.cli.shared.ticker import seconds
from thrifty.errors import PromptError
from thrifty.evaluation.halves import ITEMS

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.engines import Engines
    from thrifty.evaluation.forecast import Run
    from thrifty.evaluation.protocol import FormatRow
    from thrifty.evaluation.scoring import Summary
    from thrifty.evaluation.tasks.task import Task
    from thrifty.models.model import Model
    from thrifty.recipe import Recipe

LM_EVAL = "lm-eval:"


@dataclass(frozen=True)
class Setting:
    """What a run of the command is asked for, recipe and tasks apart."""

    model: str
    items: int
    length: int
    seed: int
    records: Path | None
    off_grid: bool
    threads: int | None
    native: bool | None

    @property
    def engines(self) -> Engines:
        """What opens its engines."""
        from thrifty.evaluation.engines import Engines

        return Engines(self.threads, self.native)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for the last line."""
        return {
            "model": self.model,
            "items": self.items,
            "length": self.length,
            "seed": self.seed,
            "off_grid": self.off_grid,
            "records": str(self.records) if self.records else None,
        }

    def header(self, engine: Engine, what: dict[str, Any]) -> dict[str, Any]:
        """The settings that records must share to be of one run."""
        return {
            "model": engine.model.version,
            "runner": engine.probe().runner,
            "items": ITEMS,
            "length": self.length,
            "seed": self.seed,
            "off_grid": self.off_grid,
            **what,
        }

    def weights_label(self, recipe: Recipe, baseline: Baseline) -> str:
        """What the figures say of weights."""
        if self.off_grid:
            return "off the grid: what a weight technique costs"
        if baseline.techniques:
            told = f"of a compressed model: {baseline.label}"
            return f"{told}; the recipe's techniques come on top of it" if recipe.weights else told
        if recipe.weights:
            return "on the grid: a checkpoint that was published in few bits may be rounded exactly; see --off-grid"
        return "as shipped"


@dataclass(frozen=True)
class Baseline:
    """The model that a recipe is held against: what was loaded. techniques: the tables of the weight techniques that it
    has been through, none for a checkpoint as shipped.
    """

    techniques: tuple[Mapping[str, Any], ...]
    bits_per_weight: float

    @classmethod
    def of(cls, model: Model) -> Baseline:
        """The baseline that a loaded model is."""
        return cls(tuple(model.applied), model.bits_per_weight)

    @property
    def label(self) -> str:
        """Its techniques and bits per weight where it was compressed, else "uncompressed"."""
        if not self.techniques:
            return "uncompressed"
        from thrifty.recipe import Recipe

        made = Recipe(weights=[dict(table) for table in self.techniques])
        return f"{made.label()}, {self.bits_per_weight:.3f} bits per weight"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        techniques = [dict(table) for table in self.techniques]
        return {"label": self.label, "techniques": techniques, "bits_per_weight": round(self.bits_per_weight, 4)}


def compare(setting: Setting, names: Sequence[str], recipe: Recipe) -> tuple[list[Summary], Baseline, bool]:
    """(a row a task, the model that the recipe is held against, whether Ctrl-C ended it)."""
    from thrifty import registry
    from thrifty.evaluation.comparison import Comparison
    from thrifty.evaluation.records import RecordFile

    own, foreign = tasks_of(setting, names)
    compresses = bool(recipe.weights or recipe.prompt or recipe.cache or recipe.decoding)
    with ExitStack() as stack:
        model = loaded(setting, setting.off_grid)
        check_length(setting, model)
        baseline = stack.enter_context(setting.engines.open(model))
        engine = stack.enter_context(setting.engines.beside(baseline, recipe)) if compresses else None
        with output.waiting("making the questions"):
            comparison = Comparison(own, setting.items, setting.seed, baseline, engine, recipe.cache)
        stages = {stage: getattr(recipe, stage) for stage in registry.STAGES}
        header = setting.header(baseline, {"recipe": stages})
        records = stack.enter_context(RecordFile(setting.records, header))
        sides = 1 if engine is None else 2
        interrupted = watch(
            comparison.run(records),
            comparison.total,
            lambda: tell(comparison.left(records), baseline) // sides if own else 0,
        )
        rows = comparison.summaries(records)
        if foreign and not interrupted:
            more, interrupted = _foreign(setting, foreign, baseline, engine, recipe, records)
            rows += more
    return rows, Baseline.of(model), interrupted


def run_protocol(setting: Setting, names: Sequence[str]) -> tuple[list[FormatRow], bool]:
    """(a row a format and task, whether Ctrl-C ended it): formats of weights and cache beside bf16."""
    from thrifty.evaluation.protocol import FORMATS, Protocol
    from thrifty.evaluation.records import RecordFile
    from thrifty.evaluation.scoring import check_alone

    own, foreign = tasks_of(setting, names)
    silent = [*foreign, *(task.label for task in own if not task.writes)]
    if silent:
        raise PromptError(f"--protocol compares texts, and {', '.join(silent)} writes none; use e.g. continuation")
    check_alone(own, "--protocol")
    with ExitStack() as stack:
        model = loaded(setting, off_grid=True)
        check_length(setting, model)
        baseline = stack.enter_context(setting.engines.open(model))
        with output.waiting("making the questions"):
            protocol = Protocol(own, setting.items, setting.seed, baseline)
        header = setting.header(baseline, {"protocol": [form.label for form in FORMATS]})
        records = stack.enter_context(RecordFile(setting.records, header))
        interrupted = watch(
            protocol.run_all(records, setting.engines),
            protocol.total * (len(FORMATS) + 1),
            lambda: tell(protocol.left(records, [form.label for form in FORMATS]), baseline),
        )
        rows = protocol.rows(records, [form.label for form in FORMATS])
    return rows, interrupted


def tasks_of(setting: Setting, names: Sequence[str]) -> tuple[list[Task], list[str]]:
    """(Thrifty's own tasks, names of lm-eval's). Raises TaskError with the nearest known name."""
    from thrifty.evaluation import tasks

    own = tasks.parse_all([name for name in names if not name.startswith(LM_EVAL)], length=setting.length)
    return own, [name.removeprefix(LM_EVAL) for name in names if name.startswith(LM_EVAL)]


def loaded(setting: Setting, off_grid: bool) -> Model:
    """The model of the baseline, or its off-grid view."""
    from thrifty.api import open_model
    from thrifty.weights.offgrid import packed_view

    with opening.loading(setting.model) as converting:
        model = open_model(setting.model, threads=setting.threads, progress=converting)
        return packed_view(model) if off_grid else model


def check_length(setting: Setting, model: Model) -> None:
    """Raise PromptError where the model's context cannot hold the length, before any question is made."""
    limit = model.config.context_length
    if setting.length >= limit:
        raise PromptError(
            f"--length {setting.length} leaves no room for a question: this model's context holds {limit} tokens; "
            f"use at most --length {max(16, limit - 128)}"
        )


def _foreign(
    setting: Setting, names: Sequence[str], baseline: Engine, engine: Engine | None, recipe: Recipe, records: Any
) -> tuple[list[Summary], bool]:
    """lm-eval's tasks, whole ones: what an interrupt leaves unfinished is run again."""
    from thrifty.evaluation.lm_eval_backend import compare as run

    rows: list[Summary] = []
    try:
        for name in names:
            with output.waiting(f"lm-eval: {name}"):
                rows.append(run(name, setting.items, setting.seed, baseline, engine, recipe.cache, records))
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def tell(runs: Iterable[Run], engine: Engine) -> int:
    """How many runs are left. Says about how long they will take, before they begin.

    A short run of the engine's model, a second or two, tells its pace.
    """
    from thrifty.evaluation import forecast

    left = list(runs)
    if not left:
        output.note("nothing is left to run: all records are there")
        return 0
    with output.waiting("a short run, for the time that this will take"):
        expected = forecast.expected(forecast.times(engine), left)
    output.note(
        f"about {seconds(expected.seconds)}: {expected.runs} runs, {expected.prompts:,} tokens of prompts and at most "
        f"{expected.steps:,} after them"
    )
    return len(left)


def watch(run: Iterable[object], total: int, told: Callable[[], int]) -> bool:
    """Run to the end behind a progress bar; True where Ctrl-C ended it. told: says how long it takes, and returns what
    of the total no earlier run did.
    """
    try:
        left = told()
        with progress("evaluating", left) as steps:
            for number, _ in enumerate(run):
                if number >= total - left:
                    steps.advance()
    except KeyboardInterrupt:
        output.note("stopped: what is done is kept")
        return True
    return False
