"""FastGen: a sixth to nearly a half of the cache is pruned, and generation loses nothing that counts."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from thrifty.cache.policies.fastgen import FULL, RUNG
from thrifty.claims.harness.claim import Claim, Figures, Verdict
from thrifty.claims.harness.context import Context, quality_of, recovery_of
from thrifty.engine.request import Request
from thrifty.evaluation import quality
from thrifty.evaluation.text import held_out

PREFIX, SCORED, PARTS = 1024, 256, 2
LEVELS = (98, 95, 91)  # recovery T in percent: the paper's 7B setting, its 65B setting, its lowest
PRUNED, RECOVERY = 0.169, 0.98
NAMES = ("special", "+ punctuation", "+ frequent", "+ local", "full")
ORDER = "Continue this text exactly as its author would.\n\n"


class FastgenClaim(Claim):
    """Bytes, divergence and recovery on passages of prose inside a chat, whose control tokens are the special ones."""

    paper = "7B, T = 0.98: 16.9 % of the cache pruned, win rate 47.4 %; 65B, T = 0.95: 44.9 %, 44.2 % (AlpacaEval)"
    source = "arXiv:2310.01801, table of cache budgets and win rates (section 5)"
    rule = (
        "T = 0.98: ≥ 16.9 % of the bytes pruned at a next-token recovery ≥ 98 %: holds; the same at T = 0.95 or 0.91 "
        "only: partly; else it does not hold here"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Figures:
        figures: Figures = {"prefix": PREFIX, "scored": SCORED, "parts": PARTS}
        figures["chat"] = float(context.model.require_tokenizer().has_chat_template)
        by_level: dict[str, list[float]] = {}
        for part in range(PARTS):
            passage = _passage(context, part)
            context.say(f"baseline of {len(passage.prompt)} + {SCORED} tokens, part {part}")
            with quality.Baseline.measure(context.engine, passage) as baseline:
                for level in LEVELS:
                    for name, value in _against(context, baseline, level).items():
                        by_level.setdefault(f"{name}_{level}", []).append(value)
        return figures | {name: fmean(values) for name, values in by_level.items()}

    def judge(self, figures: Figures) -> Verdict:
        good = [figures[f"pruned_{level}"] >= PRUNED and figures[f"recovery_{level}"] >= RECOVERY for level in LEVELS]
        if good[0]:
            return Verdict.HOLDS
        return Verdict.PARTLY if any(good) else Verdict.FAILS

    def tell(self, figures: Figures) -> str:
        parts = [
            f"T = 0.{level}: {figures[f'pruned_{level}']:.1%} of the bytes pruned, recovery "
            f"{figures[f'recovery_{level}']:.1%}, KL {figures[f'kl_{level}']:.4f}, {figures[f'full_{level}']:.0%} of "
            "the heads full"
            for level in LEVELS
        ]
        return "; ".join(parts)

    def setting(self, figures: Figures) -> str:
        form = "as a chat's question" if figures["chat"] else "without a chat template, so with few special tokens"
        return (
            f"r_l = r_f = 0.3, every query head of a KV head recovered; {figures['parts']:.0f} passages of prose "
            f"{form}, {figures['scored']:.0f} tokens after {figures['prefix']:.0f} compressed; no judge of answers"
        )


def _passage(context: Context, part: int) -> quality.Passage:
    """Prose as the question of a chat where the model has a template, and what follows it as the answer."""
    tokenizer = context.model.require_tokenizer()
    ids = held_out(tokenizer, PREFIX + SCORED + 1, part)
    if not tokenizer.has_chat_template:
        return quality.Passage(tuple(ids[:PREFIX]), tuple(ids[PREFIX:]))
    text = tokenizer.decode(ids[:PREFIX])
    prompt = tokenizer.encode_chat([{"role": "user", "content": ORDER + text}])
    return quality.Passage(tuple(prompt), tuple(ids[PREFIX:]))


def _against(context: Context, baseline: quality.Baseline, level: int) -> Figures:
    """One level of recovery against the uncompressed model; nothing need be pruned."""
    context.say(f"fastgen, T = 0.{level}")
    table = {"technique": "fastgen", "recovery": level / 100}
    run = quality.measure(context.engine, baseline, [table], compresses=False)
    assert baseline.run is not None, "a baseline was measured"
    taken = candidates(context, baseline.passage, table)
    return {
        "pruned": 1 - run.cache_bytes / baseline.run.cache_bytes,
        "kl": quality_of(run).kl.value,
        "recovery": recovery_of(run).value,
        "full": taken[NAMES[FULL]] / taken.total(),
    }


def candidates(context: Context, passage: quality.Passage, table: dict[str, object]) -> Counter[str]:
    """How many KV heads, over all layers that see every token, took which candidate."""
    request = Request(prompt=passage.prompt, forced=passage.answer[:4], cache=[table], share_prefix=False)
    handle = context.engine.submit(request)
    try:
        while handle.usage.generated_tokens == 0:
            context.engine.step()
        held = context.engine.cache_of(handle)
        assert held is not None, "the request is decoding"
        return Counter(NAMES[rung] for layer in held.policy_layers for rung in held.stats(layer).notes[RUNG])
    finally:
        handle.cancel()
