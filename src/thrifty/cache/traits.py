"""What a cache policy is like, beside its formula: what a recipe's order and the promised bytes follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts of a policy's class. `CachePolicy` refuses a class whose traits contradict each other or its methods.

    exact: it reads exact keys or values, so it must come before a policy that quantises.
    quantises: it stores slots in a format of less than 16 bits (`stored` says how many).
    ragged: the heads of a layer may keep different numbers of slots.
    uniform: it counts a layer's slots for all heads alike, so nothing ragged can come before it.
    biases: slots may get a logit bias.
    causal: it has an option of this name; with it what is held depends on the tokens before alone.
    whole_pages: evictions while decoding let go of whole pages only, so that they free quantised pages too.
    selects: rows that decode attend to some pages only, chosen anew by each row (`selection` says which).
    offloads: what is stored goes to the disk tier when the other policies have acted; each step reads it back, one
        group of KV heads (`head_group`) after the other.
    control: it is no published method but what techniques are compared with; searches do not offer it.
    """

    exact: bool = False
    quantises: bool = False
    ragged: bool = False
    uniform: bool = False
    biases: bool = False
    whole_pages: bool = False
    selects: bool = False
    causal: bool = False
    offloads: bool = False
    control: bool = False

    def contradiction(
        self,
        *,
        compresses: bool,
        decodes: bool,
        stores: bool,
        selects: bool = False,
        asks: bool = False,
        option: bool = False,
    ) -> str | None:
        """What cannot be true together, with the way out; None where nothing is wrong.

        compresses: the class acts when a prompt ends. decodes: it has an `after_decode`. stores: it has a `stored`.
        selects: it has a `selection`. asks: it wants statistics. option: it has an option `causal`.
        """
        if self.selects != selects:
            return "selects and a `selection` belong together: write the one that is missing, or drop the other"
        if self.ragged and self.uniform:
            return "ragged and uniform: heads either keep numbers of their own or are counted alike; drop one of them"
        if self.offloads and (self.selects or not (compresses and decodes)):
            return (
                "offloads, but it selects pages, or leaves something in memory: write `after_prefill` and "
                "`after_decode`, which move what is stored to disk"
            )
        if self.quantises and self.exact:
            return (
                "exact and quantises: a policy that quantises is never behind another that does, so it finds exact "
                "slots anyway; drop exact"
            )
        if self.quantises and not stores:
            return "quantises, but has no `stored`: say how many of a head's slots lie in which format"
        if stores and not self.quantises:
            return "has a `stored`, but does not quantise: set quantises, or leave `stored` out"
        if self.whole_pages and not decodes:
            return "whole_pages, but nothing is evicted while decoding: write `after_decode`, or drop whole_pages"
        if self.causal != option:
            return "causal, but there is no option of that name, or the other way round: a method that can be has both"
        if self.causal and (asks or not decodes):
            return (
                "causal, but it looks at rows that come later, or never acts while they come: write `after_decode`, "
                "and want no statistics"
            )
        acting = [name for name in ("exact", "quantises", "ragged", "biases") if getattr(self, name)]
        if acting and not (compresses or decodes):
            return f"{', '.join(acting)}, but no method acts: write `after_prefill` or `after_decode`, or drop them"
        return None
