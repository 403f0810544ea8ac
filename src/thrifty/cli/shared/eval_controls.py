"""`thrifty eval --controls`: whether the tasks measure anything on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.evaluating import Baseline, Setting, check_length, loaded, tasks_of, tell, watch
from thrifty.cli.shared.layout import Column
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.evaluation.controls import Scrambled


def run_controls(setting: Setting, names: Sequence[str]) -> tuple[list[Scrambled], Baseline, bool]:
    """(a row a task, the model, whether Ctrl-C ended it): the model's score beside the scrambled one."""
    from thrifty import registry
    from thrifty.evaluation.comparison import Comparison
    from thrifty.evaluation.controls import scramble
    from thrifty.evaluation.records import RecordFile

    own, foreign = tasks_of(setting, names)
    if foreign:
        raise PromptError(f"--controls scrambles Thrifty's own tasks; leave {', '.join(foreign)} of lm-eval out")
    if setting.items < 2:
        raise PromptError("--controls holds every item against others: use --items 2 or more, such as --items 20")
    rows: list[Scrambled] = []
    uncompressed: dict[str, list[str]] = {stage: [] for stage in registry.STAGES}
    with ExitStack() as stack:
        model = loaded(setting, setting.off_grid)
        check_length(setting, model)
        engine = stack.enter_context(setting.engines.open(model))
        with output.waiting("making the questions"):
            comparison = Comparison(own, setting.items, setting.seed, engine, None, [])
        records = stack.enter_context(RecordFile(setting.records, setting.header(engine, {"recipe": uncompressed})))
        if watch(comparison.run(records), comparison.total, lambda: tell(comparison.left(records), engine)):
            return rows, Baseline.of(model), True
        try:
            with output.waiting("grading with other items' answers"):
                rows.extend(scramble(engine, comparison.work, records))
        except KeyboardInterrupt:
            return rows, Baseline.of(model), True
    return rows, Baseline.of(model), False


def show_controls(document: Mapping[str, Any]) -> None:
    """Score and scrambled score by task, and whether the control holds."""
    columns = [
        Column("task", number=False),
        Column("items", rank=3),
        Column("score", rank=1),
        Column("scrambled", rank=1),
        Column("95 % interval of the difference", rank=2),
        Column("control", number=False),
    ]
    rows = [
        (
            row["task"],
            str(row["items"]),
            f"{row['score']:.3f}",
            f"{row['scrambled']:.3f}",
            f"{row['difference']['low']:.3f} to {row['difference']['high']:.3f}",
            "holds" if row["passed"] else "fails",
        )
        for row in document["controls"]
    ]
    output.table(
        f"{document['model']}, {document['baseline']['label']}, {document['length']} tokens, seed {document['seed']}",
        columns,
        rows,
    )
    failed = [row["task"] for row in document["controls"] if not row["passed"]]
    if failed:
        output.say(
            f"{', '.join(failed)}: other items' answers score about as well as the right ones, so this task measures "
            "nothing on this model. Use more --items, an easier setting, or a larger model."
        )
