"""KVzip: a cache 3 to 4 times as small answers any later question, and finding it costs about two prefills more."""

from __future__ import annotations

import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

from thrifty.claims.harness.claim import Claim, Figures, Verdict, combined
from thrifty.claims.harness.context import Context, quality_of, recovery_of
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.measuring.noise import LIMIT, listening
from thrifty.evaluation.tasks.multi_turn import MultiTurn
from thrifty.evaluation.tasks.recall import Recall
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.evaluation.tasks.task import Task

KEEP = 0.3
PREFIX, SCORED = 1024, 256
QUESTION, ASKED = 400, 8  # small models recall a key reliably up to about 0.5k tokens
LONG, ROUNDS = 2048, 2
NEAR_FULL, SMALLER, COST = 0.98, 3.0, 2.0
NAMES = ("full", "kvzip", "snapkv")


class KvzipClaim(Claim):
    """Divergence, bytes and recall with 30 % kept, SnapKV with as many slots beside it, and the time of a prompt."""

    paper = (
        "the cache 3 to 4 × smaller with negligible loss over many questions (Qwen2.5-7B, LLaMA3.1-8B, to 170K), "
        "where query-aware eviction fails; scoring takes about 2 × a prefill"
    )
    source = "arXiv:2505.23416, abstract and sections 3.4 and 4.2"
    rule = (
        "quality: next-token recovery ≥ 98 % from a cache ≥ 3 × smaller; questions: recall of one key and over several "
        "turns ≥ 98 % of the full cache's, and above SnapKV's; cost: scoring ≤ 2 × the prefill. "
        "All: holds; some: partly"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED, "question": QUESTION, "asked": ASKED}
        for name in NAMES[1:]:
            run = context.quality([_table(name)], PREFIX, SCORED)
            figures[f"{name}_kl"], figures[f"{name}_recovery"] = quality_of(run).kl.value, recovery_of(run).value
        return figures | _questions(context) | _cost(context)

    def judge(self, figures: Figures) -> Verdict:
        quality = figures["kvzip_recovery"] >= NEAR_FULL and figures["smaller"] >= SMALLER
        answers = all(
            figures[f"kvzip_{task}"] >= max(NEAR_FULL * figures[f"full_{task}"], figures[f"snapkv_{task}"])
            for task in ("recall", "turns")
        )
        ahead = figures["kvzip_turns"] > figures["snapkv_turns"]
        return combined(quality, answers and ahead, figures["cost"] <= COST)

    def tell(self, figures: Figures) -> str:
        recall, turns = (
            " / ".join(f"{figures[f'{name}_{task}']:.0%}" for name in NAMES) for task in ("recall", "turns")
        )
        return (
            f"recovery {figures['kvzip_recovery']:.1%}, KL {figures['kvzip_kl']:.3f} (SnapKV "
            f"{figures['snapkv_recovery']:.1%}, {figures['snapkv_kl']:.3f}), cache {figures['smaller']:.2f} × smaller; "
            f"full / KVzip / SnapKV: one key {recall}, several turns {turns}; scoring takes "
            f"{figures['cost']:.1f} × the prefill"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"keep = {KEEP}, {figures['scored']:.0f} tokens of prose after {figures['prefix']:.0f} compressed; "
            f"{figures['asked']:.0f} contexts of {figures['question']:.0f} tokens compressed before any question; "
            f"bytes and time of {figures['length']:.0f} tokens, bytes in whole pages of 64 slots a head"
            + (
                f"; TIMING VOID: others took {figures['others']:.0%} of the machine"
                if figures["others"] > LIMIT
                else ""
            )
        )


def _table(name: str) -> dict[str, Any]:
    return {"technique": name, "keep": KEEP}


def _questions(context: Context) -> Figures:
    """Mean scores by recipe: one key, and several questions over one context; none is known when it is compressed."""
    figures: Figures = {}
    tasks: dict[str, Task] = {"recall": Recall(length=QUESTION), "turns": MultiTurn(length=QUESTION, turns=2)}
    for label, task in tasks.items():
        items = task.items(context.model.require_tokenizer(), ASKED, 0)
        for name in NAMES:
            context.say(f"{task.name} with {name}")
            cache = [] if name == "full" else [_table(name)]
            figures[f"{name}_{label}"] = fmean(task.run(context.engine, item, cache).score for item in items)
    return figures


def _cost(context: Context) -> Figures:
    """Best times of alternating rounds from a prompt to its first token, and what the cache holds then."""
    length = min(LONG, context.length // 2 - 64)
    tokens = held_out(context.model.require_tokenizer(), length)
    times: dict[str, list[float]] = {"full": [], "kvzip": []}
    held: dict[str, int] = {}
    others = 0.0
    for _ in range(ROUNDS):
        for name, spent in times.items():
            context.say(f"a prompt of {length} tokens, {name}")
            with listening() as noise:
                seconds, held[name] = _prompt(context, tokens, [] if name == "full" else [_table(name)])
            spent.append(seconds)
            others = max(others, noise.others)
    full, ours = min(times["full"]), min(times["kvzip"])
    smaller = held["full"] / held["kvzip"]
    return {"length": length, "cost": (ours - full) / full, "smaller": smaller, "others": others}


def _prompt(context: Context, tokens: list[int], cache: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds to the first token, and bytes of the cache that the second one reads."""
    engine = context.engine
    sampling = SamplingParameters(max_tokens=2, ignore_eos=True)
    before = time.perf_counter()
    handle = engine.submit(Request(prompt=tokens, sampling=sampling, cache=cache, share_prefix=False))
    while handle.usage.generated_tokens == 0:
        engine.step()
    seconds = time.perf_counter() - before
    held = engine.cache_of(handle)
    assert held is not None, "it has a token to go"
    nbytes = held.nbytes
    handle.cancel()
    return seconds, nbytes
