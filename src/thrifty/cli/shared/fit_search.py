"""The parts of `thrifty fit`: the search with its table, what is said of the winner, and what the winner says."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import opening, output
from thrifty.cli.shared.frontier_table import Watcher
from thrifty.cli.shared.ticker import seconds

if TYPE_CHECKING:
    from thrifty.api import Thrifty
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.measurement import Measurement
    from thrifty.models.model import Model
    from thrifty.recipe import Recipe

SAMPLES = ("What is the capital of France?", "Write one sentence about a river.")
"""Further prompts that the report shows the answers to."""
ANSWER = 128  # tokens
PROFILED = 2048  # tokens of the prompt that the winner's time is told for, at most


@dataclass(frozen=True)
class Ended:
    """How a search ended. failure: why its state could not be written, empty where it could."""

    interrupted: bool = False
    failure: str = ""

    @property
    def whole(self) -> bool:
        """Whether it ran to its end."""
        return not (self.interrupted or self.failure)


def budget(model: str, memory: int | None, process_memory: int | None, copy: bool = True) -> int:
    """The bytes for weights, cache and workspace: `memory`, or what `process_memory` leaves beside the baseline of a
    process that serves the model; the less where both are given. copy: of `models.load`. Raises BudgetError where
    nothing is left.
    """
    from thrifty.api import open_model
    from thrifty.engine.admission.process_memory import GROWTH, left_for_ledger
    from thrifty.evaluation.measuring.memory import serving_baseline

    if process_memory is None:
        assert memory is not None, "one of the two is given"
        return memory
    with output.waiting("measuring what a serving process holds"):
        loaded = open_model(model, copy=copy)
        assert loaded.path is not None, "a model by name has a path"
        held = serving_baseline(loaded.path, copy)
    left = left_for_ledger(process_memory, held, loaded.nbytes)
    output.note(
        f"a process that serves holds {output.megabytes(held)}, and {output.megabytes(GROWTH)} are kept for what "
        f"comes: {output.megabytes(left)} are left for weights, cache and workspace"
    )
    return left if memory is None else min(memory, left)


def prepare(
    model: str, asked: Mapping[str, Any], own: Sequence[Recipe], state: Path | None, fresh: bool, copy: bool = True
) -> Fit:
    """The search, ready to run, on the state of an earlier one. asked: options of Question, None for its default. copy:
    of `models.load`.
    """
    from thrifty.api import open_model
    from thrifty.frontier.candidates import of_recipe
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.question import Question
    from thrifty.frontier.state import SearchState, default_path

    with output.waiting(f"loading {model}"):
        loaded = open_model(model, threads=asked["threads"], copy=copy)
        question = Question(loaded, **{name: value for name, value in asked.items() if value is not None})
        identity = question.identity()
        held = SearchState(state or default_path(identity), identity, fresh=fresh)
        try:
            fit = Fit(question, [of_recipe(recipe) for recipe in own], state=held)
        except BaseException:
            held.close()
            raise
    if len(held):
        output.note(f"going on with {len(held)} records of an earlier search in {held.path} (--fresh forgets them)")
    return fit


def watch(fit: Fit, quiet: bool) -> Ended:
    """Run the search and show it."""
    from thrifty.errors import StorageError

    try:
        with output.waiting("predicting what recipes take"):
            fit.begin()
        if not quiet:
            _say_plan(fit)
        with Watcher(fit, quiet) as watcher:
            for row in fit.rows():
                watcher.add(row)
    except KeyboardInterrupt:
        output.note("stopped: the best so far is kept" if fit.best else "stopped before any that fits was measured")
        return Ended(interrupted=True)
    except StorageError as error:
        return Ended(failure=f"{error} What was measured before is kept; the best so far is used.")
    finally:
        _say_skipped(fit)
    return Ended()


def _say_skipped(fit: Fit) -> None:
    """What could not be made or measured, a line for every reason."""
    by_reason: dict[str, list[str]] = {}
    for candidate, reason in fit.skipped:
        by_reason.setdefault(reason, []).append(candidate.label)
    for reason, labels in by_reason.items():
        more = f"and {len(labels) - 1} more were" if len(labels) > 1 else "was"
        output.warn(f"{labels[0]} {more} left out: {reason}")


def announce(fit: Fit, path: Path) -> None:
    """The winner, where its recipe went, and why it won."""
    from thrifty.frontier import explain

    best = fit.best
    assert best is not None
    lines = [f"best: {best.candidate.label}. Written to {path}.", *explain.why(fit)]
    for line in lines:
        output.say(line)


def shown(fit: Fit, best: Measurement, prompt: str, *, quiet: bool, whole: bool) -> dict[str, Any]:
    """Answers of the winner (whole: and of the baseline, to more prompts; and the winner's profile). Unless quiet, the
    first answer is streamed.
    """
    from thrifty.api import open_model
    from thrifty.recipe import Recipe

    question = fit.question
    prompts = [prompt] if prompt else []
    if whole and prompt:
        prompts += [text for text in SAMPLES if text != prompt]
    recipe = best.candidate.recipe
    with output.waiting("making the winner's weights"):
        loaded = open_model(question.model, recipe, errors=False)
    opened = partial(_opened, threads=question.threads, native=question.native, context=question.context)
    with opened(loaded, replace(recipe, weights=[]), memory=question.memory) as thrifty:
        mine = [_answer(thrifty, text, question.context, quiet or place > 0) for place, text in enumerate(prompts)]
        profile = _profile(thrifty, question.context) if whole else None
    if not whole:
        return {}
    theirs = mine
    if prompts and (recipe.weights or recipe.cache):
        del loaded, thrifty
        with opened(question.model, Recipe()) as thrifty:
            theirs = [_answer(thrifty, text, question.context, True) for text in prompts]
    answers = [
        {"prompt": text, "baseline": base, "winner": winner}
        for text, base, winner in zip(prompts, theirs, mine, strict=True)
    ]
    return {"answers": answers, "profile": profile}


@contextmanager
def _opened(model: Model, recipe: Recipe, **options: Any) -> Iterator[Thrifty]:
    """A loaded model behind an engine for a while."""
    from thrifty.api import Thrifty
    from thrifty.evaluation.measuring.memory import release

    release()  # what the search made
    with Thrifty(model, recipe=recipe, **options) as thrifty:
        yield thrifty


def reproduced(model: str, asked: Mapping[str, Any], out: Path, copy: bool = True) -> str:
    """The command that asks the same again."""
    words = ["thrifty", "fit", model, "--memory", str(asked["memory"]), "--context", str(asked["context"])]
    names = ("batch", "min_recovery", "minutes", "items", "seed", "prefix", "scored", "threads")
    for name in names:
        if asked[name] is not None:
            words += [f"--{name.replace('_', '-')}", f"{asked[name]:g}"]
    if asked["latency"] is not None:
        words += ["--latency", f"{asked['latency'] * 1e3:g}ms"]
    if asked["tasks"] is not None:
        words += ["--tasks", ",".join(asked["tasks"])]
    if asked["native"] is not None:
        words.append("--native" if asked["native"] else "--reference")
    if asked["off_grid"]:
        words.append("--off-grid")
    if not copy:
        words.append("--no-copy")
    return shlex.join([*words, "-o", str(out)])


def _say_plan(fit: Fit) -> None:
    """What will be measured, why the rest will not, and how long it will take."""
    from thrifty.frontier.plan import FILLED

    plan, dropped, minutes = fit.plan, fit.dropped(), fit.question.minutes
    assert plan is not None, "a search begins before it is told of"
    message = f"{len(fit.candidates)} recipes predicted: {len(plan.chosen)} will be measured"
    reasons = {
        "memory": f"need more than {output.megabytes(fit.question.memory)}",
        "latency": f"read for longer than {fit.question.latency or 0:g} s a step",
        "weights": "round weights anew without saving a byte",
        "cache": "may keep the whole cache, so that no byte is saved for sure",
        "slow": f"have weights that take too long to make for {minutes or 0:g} min",
        "gentler": "do all that another one that fits does, and more",
    }
    message += "".join(f", {count} {reasons[name]}" for name, count in dropped.items() if count)
    output.note(message + "; the uncompressed model is measured in any case")
    if plan.total is None:
        return
    least = f"at most {minutes:g} min" if minutes is not None else ""
    first, *_, last = fit.rungs
    about = f"about {seconds(plan.total)}, {least}" if minutes is None or plan.total <= 60 * minutes else least
    output.note(
        f"this will take {about}: {first.prefix} + {first.scored} tokens of every recipe, {last.prefix} + "
        f"{last.timed + last.scored} and {fit.exam.count()} questions of the last two"
        + (f"; before that about {seconds(plan.probe)} to score the model's heads, once" if plan.probe else "")
        + (f"; about {seconds(plan.making)} of it to make their weights once" if plan.making >= 1 else "")
    )
    if minutes is not None and plan.total > 60 * minutes:
        output.warn(
            f"all of it would take about {seconds(plan.total)} on this machine now; the best found by then is kept, "
            f"and --minutes {math.ceil(plan.total / 60 / FILLED)} gives it the time"
        )


def _answer(thrifty: Thrifty, prompt: str, context: int, quiet: bool) -> str:
    if not quiet:
        sys.stdout.write(f"\n> {prompt}\n")
    room = max(1, min(ANSWER, context // 2))
    handle = opening.submit(thrifty, [{"role": "user", "content": prompt}], {"max_tokens": room})
    if quiet:
        with output.waiting("answering"):
            return handle.result().text
    for event in handle:
        sys.stdout.write(event.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return handle.result().text


def _profile(thrifty: Thrifty, context: int) -> dict[str, Any] | None:
    """Where the winner's time goes; None where it runs without the native plan, which alone tells it."""
    from thrifty.evaluation.measuring import profile

    if not thrifty.engine.probe().native:
        return None
    tokens = min(PROFILED, max(1, context // 2))
    steps = min(profile.STEPS, max(1, context - tokens - 1))
    with output.waiting("measuring where the winner's time goes"):
        measured = profile.measure(thrifty.engine, tokens, steps)
    return {
        part: {
            kind: {"us_per_token": round(share.microseconds, 2), "bytes": share.nbytes}
            for kind, share in shares.items()
        }
        for part, shares in (("prefill", measured.prefill), ("decode", measured.decode))
    }
