"""The model `thrifty` of lm-eval, so that its tasks run on a recipe; and such a task beside the baseline.

Importing this module registers it: `lm_eval.simple_evaluate(model="thrifty", model_args="model=smollm2-135m")`. What
a request's cache recipe compresses is its context but for the last token, which is fed after compression: so every
scored or written token has read the compressed cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.asking import ask, compresses, likelihoods
from thrifty.evaluation.comparison import BASELINE, RECIPE
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.scoring import Summary, summarize
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks.task import Record

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise TaskError("tasks of lm-eval need its package: pip install 'thrifty-engine[eval]'") from missing

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

PREFIX = "lm-eval:"
ANSWER = 256  # tokens of an answer where the task names no bound


@register_model("thrifty")
class ThriftyLM(TemplateLM):
    """lm-eval's view of an engine: log-likelihoods and greedy answers."""

    def __init__(
        self,
        model: str = "",
        *,
        recipe: str | None = None,
        engine: Engine | None = None,
        cache: Tables | None = None,
        threads: int | None = None,
        **_: Any,
    ) -> None:
        """engine: one to use, with the cache tables `cache`; else one is made of `model` and the file `recipe`.

        lm-eval passes its own arguments (batch_size, device) too; the engine takes none of them.
        """
        super().__init__()
        if engine is None:
            from thrifty.api import Thrifty

            made = Thrifty(model, recipe=recipe, threads=int(threads) if threads else None, prefix_tree=False)
            engine, cache = made.engine, made.recipe.cache
        self.engine, self.cache = engine, cache
        self.words: Any = engine.model.require_tokenizer()
        self.requests = self.compressed = 0

    @property
    def eot_token_id(self) -> int:
        """What stands in front of a text without context."""
        ids: Sequence[int] = self.words.eos_ids
        return int(ids[0])

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches of requests."""
        return str(self.engine.model.version)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text."""
        return list(self.words.encode(string, add_bos=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return str(self.words.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _text, context, continuation in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the engine's context, each after the last token of the one
        before.
        """
        totals = []
        for request in requests:
            tokens = [self.eot_token_id, *self.tok_encode(request.args[0], add_special_tokens=False)]
            window = self.engine.probe().context - 2
            places = range(0, max(1, len(tokens) - 1), window)
            totals.append(sum(self._score(tokens[at : at + 1], tokens[at + 1 : at + 1 + window])[0] for at in places))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to a stop string. Raises TaskError where a task wants them sampled."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        if options.get("do_sample") and float(options.get("temperature") or 0.0) > 0.0:
            raise TaskError("the task asks for sampled answers; Thrifty's backend of lm-eval answers greedily")
        stop = options.get("until") or ()
        limit = int(options.get("max_gen_toks") or options.get("max_new_tokens") or ANSWER)
        tokens = self._room_for(self.tok_encode(context), limit)
        tokens = [self.eot_token_id] * (2 - len(tokens)) + tokens
        prompt, fed = tokens[:-1], tokens[-1:]
        stops = (stop,) if isinstance(stop, str) else tuple(text for text in stop if text)
        reply = ask(self.engine, prompt, fed, limit, self.cache, stop=stops, insist=False)
        self._count(reply.compressed)
        return reply.text

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        if not continuation:
            return 0.0, True
        tokens = self._room_for([*context], len(continuation))
        prompt, fed = (tokens[:-1], tokens[-1:]) if len(tokens) > 1 else (tokens, [])
        (likelihood,) = likelihoods(self.engine, prompt, fed, [list(continuation)], self.cache, insist=False)
        self._count(likelihood.compressed)
        return likelihood.total, likelihood.greedy

    def _count(self, compressed: bool) -> None:
        self.requests += 1
        self.compressed += compressed

    def _room_for(self, tokens: list[int], more: int) -> list[int]:
        limit = self.engine.probe().context - 1
        if len(tokens) + more > limit:
            raise TaskError(
                f"a request of {len(tokens)} tokens and {more} of an answer does not fit the context of {limit}; "
                "choose a task with shorter questions"
            )
        return tokens


def compare(
    name: str,
    limit: int,
    seed: int,
    baseline: Engine,
    engine: Engine | None,
    cache: Tables,
    records: RecordFile,
    manager: Any = None,
) -> Summary:
    """A row of a task of lm-eval: its first metric on the first `limit` questions, for the baseline and the recipe.

    manager: lm-eval's TaskManager, for tasks of one's own. Raises TaskError where the task is unknown or its data
    cannot be had.
    """
    sides: list[tuple[str, Engine, Tables]] = [(BASELINE, baseline, [])]
    if engine is not None:
        sides.append((RECIPE, engine, cache))
    results: dict[str, list[Record]] = {}
    for side, side_engine, tables in sides:
        results[side] = _held(records, side, name, limit)
        if not results[side]:
            results[side] = evaluate(name, side_engine, tables, limit, seed, manager)
            for record in results[side]:
                records.add(side, record)
    metric = str(results[BASELINE][0].details["metric"])
    return summarize(PREFIX + name, metric, results[BASELINE], results.get(RECIPE, []))


def evaluate(name: str, engine: Engine, cache: Tables, limit: int, seed: int, manager: Any = None) -> list[Record]:
    """The records of one task of lm-eval. Short questions may leave nothing to compress: `compressed` of a record's
    details is the share that was compressed. Raises TaskError; MeasurementError where that share is nothing.
    """
    started = time.perf_counter()
    model = ThriftyLM(engine=engine, cache=cache)
    try:
        results = lm_eval.simple_evaluate(
            model,
            tasks=[name],
            limit=limit,
            bootstrap_iters=0,
            task_manager=manager,
            random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=True,
        )
    except (TaskError, MeasurementError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise TaskError(_reason(name, error)) from error
    samples = [sample for group in (results or {}).get("samples", {}).values() for sample in group]
    if not samples:
        raise TaskError(f"lm-eval's task '{name}' has no questions")
    if compresses(cache) and not model.compressed:
        raise MeasurementError(
            f"none of the {model.requests} requests of lm-eval's task '{name}' was long enough for the recipe to "
            "compress anything, so there is nothing to score. Use a smaller budget in the recipe, or a task with "
            "longer questions."
        )
    details: dict[str, Any] = {"limit": limit, "samples": len(samples)}
    if compresses(cache):
        details["compressed"] = model.compressed / model.requests
    seconds = (time.perf_counter() - started) / len(samples)
    return [_record(name, sample, seconds, details) for sample in samples]


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, KeyError) or "not found" in str(error).lower():
        return f"lm-eval has no task '{name}' ({error}). `lm_eval ls tasks` lists them."
    return (
        f"lm-eval's task '{name}' could not run ({type(error).__name__}: {str(error).strip()[:300]}). Its data usually "
        "come from the Hugging Face hub: check the network, or fetch them once where there is one."
    )


def _record(name: str, sample: Mapping[str, Any], seconds: float, details: Mapping[str, Any]) -> Record:
    metrics = [metric_name for metric_name in sample["metrics"] if isinstance(sample.get(metric_name), int | float)]
    if not metrics:
        raise TaskError(f"lm-eval's task '{name}' gives its questions no number of their own: {sample['metrics']}")
    answers = sample.get("filtered_resps") or [""]
    return Record(
        task=PREFIX + name,
        item=f"{sample['doc_id']}-{str(sample.get('doc_hash', ''))[:10]}",
        score=float(sample[metrics[0]]),
        output=str(answers[0]),
        seconds=seconds,
        expected=str(sample.get("target", "")),
        details={"metric": metrics[0], **details},
    )


def _held(records: RecordFile, side: str, name: str, limit: int) -> list[Record]:
    """The records of an earlier run, where all of them were kept."""
    held = [record for record in records.of(side, PREFIX + name) if record.details.get("limit") == limit]
    return held if held and len(held) == held[0].details.get("samples") else []
