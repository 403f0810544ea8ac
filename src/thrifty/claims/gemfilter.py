"""GemFilter: an early layer filters a long prompt, whose first token comes 2.4 times as soon as with SnapKV."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.parts import Bar, Part, exactly, kept, times
from thrifty.claims.harness.prompting import Place, Prompting, share
from thrifty.claims.harness.reading import counted, prompt_length, unanswered
from thrifty.claims.harness.statistics import Scores

PAPER = 131072
PART = 8  # of a prompt: the paper's 1024 of 128K would be eight tokens of these
LEAST = 64
LONG = 4096  # tokens of a prompt that is timed, where the budget has no time for more
FASTER, LESS, COMPARABLE = 2.4, 0.7, 0.95  # the last is Thrifty's reading of "comparable performance"
ANSWERS = "answers of the whole prompt's"


class GemfilterClaim(Claim):
    """Time to the first token beside SnapKV with as many tokens kept; answers where the question ends the prompt, and
    of a chat's whole turn, whose last token is no question's.
    """

    paper = (
        "128K tokens filtered to 1024 (LLaMA 3.1 8B, Mistral Nemo 12B, Phi 3.5 Mini): 2.4 × faster and 30 % less GPU "
        "memory than SnapKV, needles found, LongBench comparable"
    )
    source = "arXiv:2409.17422, abstract; its repository. Read in a secondary summary and in the code, not in the paper"
    rule = (
        "with an eighth of the prompt read, the first token comes at least 2.4 × as soon as with SnapKV, with at least "
        "95 % of the whole prompt's right answers (question last), more than with random tokens"
    )
    minutes = 2.0
    models = ("smollm2-135m", "qwen2.5-coder-0.5b")

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        timed = min(max(length, LONG), context.length - 8)
        table = _table(length)
        setting = (
            f"1/{PART} of {length} tokens read, the first 4 and the last 32 among them; timed at {timed} tokens; a key "
            "in prose stands for LongBench and needles; the question ends the prompt"
        )
        with Prompting(context, length, place="end") as score:
            full = score([])
            headline = self._sooner(context, score, timed)
            if weak := unanswered(full):
                return Measurement(Part(ANSWERS, bar=Bar(COMPARABLE), missing=weak), (headline,), setting=setting)
            ours = score([table])
            tested = score.controlled(full, ours, table)
            return Measurement(
                headline=headline,
                parts=(*self._shown(score, full, length), _memory(score, timed)),
                gates=(kept(ANSWERS, ours, full, Bar(COMPARABLE)), tested.gate),
                controls=tested.controls,
                counts=counted(ours),
                setting=setting,
                told=(
                    "Thrifty's SnapKV reads a prompt layer by layer and holds one layer of it in full, as GemFilter's "
                    "first pass does: the memory that the paper saves is not taken here."
                ),
            )

    @staticmethod
    def _sooner(context: Context, score: Prompting, timed: int) -> Part:
        table, rival = _table(timed), _snapkv(timed)
        made = context.rounds(
            {
                "ours": lambda: score.seconds([table], length=timed),
                "snapkv": lambda: score.seconds([], [rival], length=timed),
            }
        )
        return times("first token sooner than with SnapKV", made["snapkv"], made["ours"], Bar(FASTER), "2.4 ×")

    @staticmethod
    def _shown(score: Prompting, full: Scores, length: int) -> tuple[Part, ...]:
        table = _table(length)
        places: dict[str, Place] = {"a chat's whole turn": "last", "a chat's whole turn, question first": "first"}
        return (
            *(
                kept(f"{ANSWERS}, {name}", score([table], place=place), score([], place=place), None)
                for name, place in places.items()
            ),
            kept(f"{ANSWERS}, nothing forced to stay (the official code)", score([_table(length, 0)]), full, None),
            kept(f"SnapKV's {ANSWERS}", score([], [_snapkv(length)]), full, None),
        )


def _table(length: int, forced: int | None = None) -> dict[str, Any]:
    table = {"technique": "gemfilter", "capacity": share(length, PART, LEAST)}
    return table if forced is None else table | {"first": forced, "last": forced}


def _snapkv(length: int) -> dict[str, Any]:
    return {"technique": "snapkv", "capacity": share(length, PART, LEAST)}


def _memory(score: Prompting, timed: int) -> Part:
    """Peaks of the ledger, weights included, of one prompt."""
    ours, theirs = score.peak([_table(timed)], length=timed), score.peak([], [_snapkv(timed)], length=timed)
    return exactly("memory of SnapKV's", ours / theirs, Bar(LESS, at_least=False), paper="30 % less")
