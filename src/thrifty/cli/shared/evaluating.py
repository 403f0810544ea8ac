"""Running `thrifty eval`: models, engines, records and progress around an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import opening, output
from thrifty.cli.shared.progress import progress
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.protocol import Row
    from thrifty.evaluation.scoring import Summary
    from thrifty.evaluation.tasks.task import Task
    from thrifty.models.model import Model
    from thrifty.recipe import Recipe

LM_EVAL = "lm-eval:"
Table = dict[str, Any]


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
            "runner": engine.runner.name,
            "length": self.length,
            "seed": self.seed,
            "off_grid": self.off_grid,
            **what,
        }

    def weights_label(self, recipe: Recipe) -> str:
        """What the figures say of weights."""
        if self.off_grid:
            return "off the grid: what a weight technique costs"
        if recipe.weights:
            return "on the grid: a checkpoint that was published in few bits may be rounded exactly; see --off-grid"
        return "as shipped"


def compare(setting: Setting, names: Sequence[str], recipe: Recipe) -> tuple[list[Summary], bool]:
    """(a row a task, whether Ctrl-C ended it): the recipe beside the uncompressed model."""
    from thrifty import registry
    from thrifty.evaluation.comparison import Comparison
    from thrifty.evaluation.records import RecordFile

    own, foreign = tasks_of(setting, names)
    compresses = bool(recipe.weights or recipe.cache or recipe.decoding)
    with ExitStack() as stack:
        model = loaded(setting)
        check_length(setting, model)
        baseline = stack.enter_context(engine_of(setting, model))
        engine = stack.enter_context(_recipe_engine(setting, recipe, baseline)) if compresses else None
        with output.waiting("making the questions"):
            comparison = Comparison(own, setting.items, setting.seed, baseline, engine, recipe.cache)
        stages = {stage: getattr(recipe, stage) for stage in registry.STAGES}
        header = setting.header(baseline, {"recipe": stages})
        records = stack.enter_context(RecordFile(setting.records, header))
        interrupted = watch(comparison.run(records), comparison.total)
        rows = comparison.summaries(records)
        if foreign and not interrupted:
            more, interrupted = _foreign(setting, foreign, baseline, engine, recipe, records)
            rows += more
    return rows, interrupted


def run_protocol(setting: Setting, names: Sequence[str]) -> tuple[list[Row], bool]:
    """(a row a format and task, whether Ctrl-C ended it): formats of weights and cache beside bf16."""
    from thrifty.evaluation.protocol import Protocol
    from thrifty.evaluation.records import RecordFile

    own, foreign = tasks_of(setting, names)
    silent = [*foreign, *(task.label for task in own if not task.writes)]
    if silent:
        raise PromptError(f"--protocol compares texts, and {', '.join(silent)} writes none; use e.g. continuation")
    with ExitStack() as stack:
        model = view(loaded(setting))
        check_length(setting, model)
        baseline = stack.enter_context(engine_of(setting, model))
        with output.waiting("making the questions"):
            protocol = Protocol(own, setting.items, setting.seed, baseline)
        header = setting.header(baseline, {"protocol": [one.label for one in formats()]})
        records = stack.enter_context(RecordFile(setting.records, header))
        interrupted = False
        with progress("evaluating", protocol.total * (len(formats()) + 1)) as steps:
            try:
                for _ in protocol.run_baseline(records):
                    steps.advance()
                for one in formats():
                    with _format_engine(setting, model, baseline, one) as engine:
                        for _ in protocol.run(records, one.label, engine, one.cache):
                            steps.advance()
            except KeyboardInterrupt:
                interrupted = True
        rows = protocol.rows(records, [one.label for one in formats()])
    return rows, interrupted


@dataclass(frozen=True)
class Format:
    """A number format of weights or cache in the protocol."""

    label: str
    weights: tuple[Table, ...] = ()
    cache: tuple[Table, ...] = ()


def formats() -> list[Format]:
    """The formats of the protocol, in the order of its table."""
    return [
        Format("W8A8: rtn 8, activations int8 per 32", ({"technique": "rtn", "bits": 8},)),
        Format("W4A8: rtn 4, activations int8 per 32", ({"technique": "rtn", "bits": 4},)),
        Format("cache: kivi 4", cache=({"technique": "kivi", "bits": 4},)),
        Format("cache: kivi 2", cache=({"technique": "kivi", "bits": 2},)),
    ]


def tasks_of(setting: Setting, names: Sequence[str]) -> tuple[list[Task], list[str]]:
    """(Thrifty's own tasks, names of lm-eval's). Raises TaskError with the nearest known name."""
    from thrifty.evaluation import tasks

    own = tasks.parse_all([name for name in names if not name.startswith(LM_EVAL)], length=setting.length)
    return own, [name.removeprefix(LM_EVAL) for name in names if name.startswith(LM_EVAL)]


def loaded(setting: Setting) -> Model:
    """The model of the baseline."""
    from thrifty.models.loading import load

    with opening.loading(setting.model) as converting:
        model = load(setting.model, threads=setting.threads, progress=converting)
        return view(model) if setting.off_grid else model


def view(model: Model) -> Model:
    """The off-grid view in bf16: the same function, on which a 4-bit checkpoint is not rounded exactly."""
    from thrifty.arrays import BFLOAT16
    from thrifty.weights.offgrid import offgrid

    if "+offgrid(" in model.version:
        return model
    return offgrid(model, dtype=BFLOAT16, packed=True)


def check_length(setting: Setting, model: Model) -> None:
    """Raise PromptError where the model's context cannot hold the length, before any question is made."""
    limit = model.config.context_length
    if setting.length >= limit:
        raise PromptError(
            f"--length {setting.length} leaves no room for a question: this model's context holds {limit} tokens; "
            f"use at most --length {max(16, limit - 128)}"
        )


@contextmanager
def engine_of(setting: Setting, model: Model, recipe: Recipe | None = None) -> Iterator[Engine]:
    """An engine for a while. The prefix tree is left out: every run computes its own prompt."""
    from thrifty.engine.engine import Engine

    decoding = recipe.decoding if recipe else ()
    engine = Engine(model, threads=setting.threads, native=setting.native, decoding=decoding, prefix_tree=False)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _recipe_engine(setting: Setting, recipe: Recipe, baseline: Engine) -> Iterator[Engine]:
    """The baseline's own engine where the recipe leaves weights and decoding alone."""
    if not recipe.weights and not recipe.decoding:
        yield baseline
        return
    with engine_of(setting, with_weights(baseline.model, recipe), recipe) as engine:
        yield engine


@contextmanager
def _format_engine(setting: Setting, model: Model, baseline: Engine, one: Format) -> Iterator[Engine]:
    from thrifty.recipe import Recipe

    with _recipe_engine(setting, Recipe(weights=list(one.weights)), baseline) as engine:
        yield engine


def with_weights(model: Model, recipe: Recipe) -> Model:
    """The model with the recipe's weight techniques applied."""
    from thrifty.weights.technique import prepare

    return prepare(model, recipe.techniques("weights"))


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


def watch(run: Iterable[object], total: int) -> bool:
    """Run to the end behind a progress bar; True where Ctrl-C ended it."""
    with progress("evaluating", total) as steps:
        try:
            for _ in run:
                steps.advance()
        except KeyboardInterrupt:
            output.note("stopped: what is done is kept")
            return True
    return False
