"""What claims measure with: one model, a budget, a seed, and scores that several claims share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from thrifty.api import open_engine
from thrifty.claims.harness.budget import SHORT, Budget
from thrifty.claims.harness.parts import Bar, Part, exactly
from thrifty.claims.harness.scores import items as task_items
from thrifty.claims.harness.scores.keys import keyed
from thrifty.claims.harness.scores.passages import SCORED, Measure, Passages, cuts
from thrifty.claims.harness.scores.timing import rounds
from thrifty.claims.harness.state import State
from thrifty.claims.harness.statistics import Scores
from thrifty.engine.request import Request
from thrifty.evaluation import tasks
from thrifty.evaluation.forcing import MeasurementError, Tables, force
from thrifty.evaluation.heads.probe import score_once
from thrifty.evaluation.measuring import speed
from thrifty.evaluation.text import held_out
from thrifty.formats.kv import PAGE
from thrifty.models.head_scores import read

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.tasks.task import Task
    from thrifty.models.model import Model
    from thrifty.recipe import Recipe

Say = Callable[[str], None]
QUESTIONS = 2  # of one context, where they are asked after it was compressed
KEPT_PROMPTS = "4GB"  # on the disk tier: what policies compressed, as it was before
PAGES = 2.5  # beyond a technique's budget
DECODED = 2  # tokens after a prompt whose cache is weighed


class Context:
    """A model under measurement. name: what reports call it. seed: of all items. say: told what is going on.

    Closing it closes the engine and what was made of it.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        budget: Budget = SHORT,
        seed: int = 0,
        state: State | None = None,
        threads: int | None = None,
        native: bool | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self.model, self.name, self.budget, self.seed, self.say = model, name, budget, seed, say
        self.options: dict[str, Any] = {"threads": threads, "native": native}
        self.ran: dict[str, None] = {}
        self.probed: dict[str, str] = {}
        self._state = State(None, {}) if state is None else state
        self._inner: list[Context] = []

    # --- engines -------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens that the model's context holds."""
        return self.model.config.context_length

    @cached_property
    def engine(self) -> Engine:
        """An engine of the model without a budget, which keeps the prompts that policies compress."""
        engine = self.fresh(self.model, prefix_tree=True, conversation_disk=KEPT_PROMPTS, prefill_slice_ms=0)
        speed.warm_up(engine)
        return engine

    def fresh(self, model: Model, recipe: Recipe | None = None, **options: Any) -> Engine:
        """Another engine, of this or another model under a recipe; the caller closes it."""
        return open_engine(model, recipe, **{"prefix_tree": False, **self.options, **options})

    def other(self, model: Model, name: str) -> Context:
        """A context of another model (a view of this one, other weights), closed with this one; nothing of it is kept
        on disk.
        """
        made = Context(model, name, budget=self.budget, seed=self.seed, say=self.say, **self.options)
        self._inner.append(made)
        return made

    # --- scores --------------------------------------------------------------------------------------

    def recall(
        self,
        cache: Tables,
        *,
        length: int = 1024,
        mode: Literal["aware", "agnostic"] = "aware",
        insist: bool = True,
    ) -> Scores:
        """Whether numbers hidden in prose of `length` tokens are named, one score a number, as many as the budget has
        items. aware: the question ends what is compressed, one a context. agnostic: two questions a context, none
        known when it is compressed; the context is their cluster.
        """
        if mode == "aware":
            return self.task("recall", cache, items=self.budget.items, length=length, mode=mode, insist=insist)
        contexts = -(-self.budget.items // QUESTIONS)
        options: dict[str, Any] = {"length": length, "mode": mode, "requests": QUESTIONS}
        return self.task("multi-request", cache, items=contexts, insist=insist, **options)

    def task(
        self,
        text: str,
        cache: Tables,
        *,
        items: int | None = None,
        seed: int | None = None,
        insist: bool = True,
        **options: Any,
    ) -> Scores:
        """Scores of a task, as `thrifty eval` names it (`gsm-symbolic`, `ruler-vt`): one a turn, of `items` items
        (default: the budget's answers), judged ones. seed: of the items (default: the context's). options: the task's,
        such as length.
        """
        task = tasks.parse(text, **options)
        seed = self.seed if seed is None else seed
        made = task.items(self.model.require_tokenizer(), self.budget.answers if items is None else items, seed)
        self._say(f"{task.label}, {len(made)} items of {task.length} tokens", cache)
        ran = task_items.records(self.engine, self._state, task, made, cache, insist=insist)
        return task_items.scores_of(made, ran, seed)

    def losses(self, cache: Tables, *, prefix: int = 1024, measure: Measure = "nll", insist: bool = True) -> Scores:
        """One loss a token of prose that follows `prefix` compressed tokens, 256 a passage, in nats: `nll`, or `kl`
        from the full cache (as many passages as there is disk for); `right`: whether the first choice came, 0 or 1.
        """
        wanted = -(-self.budget.tokens // SCORED)
        count = self._passages.most(wanted) if measure == "kl" else wanted
        chosen = cuts(self.model.require_tokenizer(), self.length, prefix, count, self.seed)
        self._say(f"{measure} of {len(chosen)} passages of {SCORED} tokens after {prefix}", cache)
        return self._passages.losses(chosen, cache, measure, insist=insist)

    def speed(self, cache: Tables, baseline: Tables = (), *, length: int, steps: int = 48) -> tuple[Scores, Scores]:
        """(rates of decoding under the tables, under the baseline's), tokens a second, in alternating rounds."""
        self._say(f"speed after {length} tokens", cache)
        sides = {"ours": cache, "baseline": list(baseline)}
        made = self.rounds({name: lambda own=own: self._rate(own, length, steps) for name, own in sides.items()})  # type: ignore[misc]
        return made["ours"], made["baseline"]

    def rounds(self, sides: Mapping[str, Callable[[], float]]) -> dict[str, Scores]:
        """Figures of anything that is timed, in alternating rounds; void where others disturbed one."""
        return rounds(sides, self.budget.rounds)

    # --- bytes ---------------------------------------------------------------------------------------

    def held(self, cache: Tables, length: int) -> int:
        """Bytes of a sequence's cache when a prompt of `length` tokens was compressed and a few tokens followed."""
        key = ["bytes", length, keyed(cache, self.model)]
        return int(self._state.once(key, lambda: self._held(cache, length)))

    def promise(self, cache: Tables, share: float, *, length: int = 1024) -> Part:
        """The gate "bytes as promised": the cache is `share` of the full one's bytes, and at most so many pages more as
        an open page, a period between evictions and statistics take. A cache that is silently full fails it, and with
        it the claim.
        """
        bar = Bar(share + PAGES * PAGE / length, at_least=False)
        return exactly("bytes of the full cache's", self.held(cache, length) / self.held([], length), bar)

    def peak(self, cache: Tables, length: int, sequences: int) -> int:
        """Bytes of the ledger at their highest, weights included, while `sequences` prompts of `length` tokens are
        served together, to the last of a few tokens each.
        """
        self._say(f"memory of {sequences} × {length} tokens", cache)
        engine = self.fresh(self.model, prefill_slice_ms=0)
        try:
            handles = []
            for part in range(sequences):
                tokens = held_out(self.model.require_tokenizer(), length + 1, part)
                # Nobody may end before all have begun. While others decode, a step does one layer or one chunk.
                steps = max(len(self.model.config.layers), length // 128) + 2
                answer = tokens[1:2] * (sequences * steps)
                handles.append(
                    engine.submit(Request(prompt=tokens[:length], forced=answer, cache=cache, share_prefix=False))
                )
            while any(handle.usage.generated_tokens == 0 for handle in handles):
                engine.step()
                if any(handle.finished for handle in handles):
                    raise MeasurementError("a sequence ended before the last one began: this is not a batch's peak")
            return engine.usage().peak
        finally:
            engine.close()

    # --- the rest ------------------------------------------------------------------------------------

    def heads(self, kind: str) -> None:
        """Probe the model's heads and save the scores, where that was not done yet. What they come from is kept for the
        row (`probed`).
        """
        self.say(f"scores of heads, kind {kind}: measured once")
        score_once(self.engine, kind)
        scores = read(self.model, kind)
        if scores is not None:
            settings = ", ".join(f"{name} {value}" for name, value in scores.settings.items())
            self.probed[kind] = f"{kind}: {scores.used} of {scores.asked}, {scores.date}, {settings}"

    def task_of(self, text: str, **options: Any) -> Task:
        """A task, for who wants to look at its items."""
        return tasks.parse(text, **options)

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.engine, self._state)

    def _rate(self, cache: Tables, length: int, steps: int) -> float:
        tokens = held_out(self.model.require_tokenizer(), length + steps + 1)
        times = [step.seconds for step in force(self.engine, tokens[:length], tokens[length:], cache)]
        return 1 / fmean(times[1:])

    def _held(self, cache: Tables, length: int) -> int:
        tokens = held_out(self.model.require_tokenizer(), length + DECODED + 1)
        nbytes = 0
        for step in force(self.engine, tokens[:length], tokens[length:], cache, inspect=(DECODED,)):
            nbytes = step.evidence.nbytes if step.evidence else nbytes
        return nbytes

    def _say(self, what: str, cache: Tables) -> None:
        names = " → ".join(str(table["technique"]) for table in cache) or "full cache"
        self.ran[str([dict(table) for table in cache])] = None
        self.say(f"{what}, {names}")

    def close(self) -> None:
        """Give everything back."""
        for made in self._inner:
            made.close()
        self._inner.clear()
        if "_passages" in self.__dict__:
            self._passages.close()
            del self.__dict__["_passages"]
        if "engine" in self.__dict__:
            self.engine.close()
            del self.__dict__["engine"]

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
