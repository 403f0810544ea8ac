"""Round-to-nearest: what 4 bits a weight cost a model in perplexity."""

from __future__ import annotations

from thrifty.claims.harness.claim import Claim, Figures, Verdict
from thrifty.claims.harness.context import Context, mean_nll, perplexity, quality_of
from thrifty.evaluation import quality
from thrifty.recipe import Recipe
from thrifty.weights.offgrid import packed_view

PREFIX, SCORED = 512, 512
RISE = 6.29 / 5.68 - 1


class RtnClaim(Claim):
    """Perplexity of the off-grid view, whose weights do not lie on a 4-bit grid already, before and after."""

    paper = "LLaMA-7B, WikiText2 perplexity: 5.68 in fp16, 6.29 at 4 bits (+ 10.7 %)"
    source = "the GPTQ authors' repository, table of LLaMA; arXiv:2210.17323"
    rule = "perplexity rises by at most 10.7 %: holds; by at most twice that: partly; else it does not hold here"
    minutes = 1.0

    def measure(self, context: Context) -> Figures:
        context.say("off-grid view")
        view = packed_view(context.model)
        passage = quality.passage(context.model.require_tokenizer(), context.length, PREFIX, SCORED)
        engine = context.fresh(view)
        try:
            baseline = quality.Baseline.measure(engine, passage)
        finally:
            engine.close()
        with baseline:
            figures: Figures = {"prefix": PREFIX, "scored": SCORED, "full": perplexity(mean_nll(baseline))}
            for group in (128, 32):
                context.say(f"4 bits in groups of {group}")
                table = {"technique": "rtn", "bits": 4, "group": group}
                engine = context.fresh(view, Recipe(weights=[table]))
                try:
                    run = quality.measure(engine, baseline, [], compresses=False)
                finally:
                    engine.close()
                figures[f"rtn_{group}"] = perplexity(quality_of(run).nll)
                figures[f"kl_{group}"] = quality_of(run).kl.value
        return figures | {"rise": figures["rtn_128"] / figures["full"] - 1}

    def judge(self, figures: Figures) -> Verdict:
        if figures["rise"] <= RISE:
            return Verdict.HOLDS
        return Verdict.PARTLY if figures["rise"] <= 2 * RISE else Verdict.FAILS

    def tell(self, figures: Figures) -> str:
        return (
            f"perplexity {figures['full']:.2f} → {figures['rtn_128']:.2f} in groups of 128 ({figures['rise']:+.1%}, KL "
            f"{figures['kl_128']:.3f}), {figures['rtn_32']:.2f} in groups of 32 (KL {figures['kl_32']:.3f})"
        )

    def setting(self, figures: Figures) -> str:
        return (
            f"off-grid view, embedding and logits as they are, {figures['scored']:.0f} tokens of prose after "
            f"{figures['prefix']:.0f}; the paper rounds whole rows of a model 50 times as large"
        )
