"""What a study is: formats of weights × formats of the cache × tasks, against the uncompressed model of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Tables = tuple[dict[str, Any], ...]
"""A stage of a recipe."""

Must = Literal["be equal", "lose"]


@dataclass(frozen=True)
class Format:
    """A way to store weights, or the cache. name: what options and tables call it. tables: of its stage; none: as it
    is.
    """

    name: str
    tables: Tables = ()
    about: str = ""


@dataclass(frozen=True)
class Finding:
    """Of a paper. paper: where it stands. says: what it found. judge: (what a grid shows, verdict) of the grid and its
    figures; `findings` makes them.
    """

    paper: str
    says: str
    judge: Callable[[Any, Any], tuple[str, str]]


@dataclass(frozen=True)
class Control:
    """A cell of which the outcome is known beforehand; a run in which it comes out otherwise is not to be believed.

    cache: with the uncompressed weights. must: "be equal" to the baseline, answer by answer, or "lose" against it.
    """

    name: str
    cache: Tables
    must: Must


AGAIN = Control("the baseline again", (), "be equal")
RANDOM_EVICTION = Control("random eviction", ({"technique": "random-eviction", "keep": 0.25},), "lose")


class Study:
    """Base of a study; a file of `studies/` subclasses it once and sets what stands here.

    title: one sentence. papers: what it follows. departs: how this differs from them, a sentence each. weights, caches:
    the formats, the uncompressed one first. tasks: as `tasks.parse_all` reads them. aside: names of tasks that are
    shown and do not count in the mean. off_grid: whether weights lie in the off-grid view, since a checkpoint that was
    published in few bits is rounded to them exactly. controls: run beside the grid.
    findings: of the papers, judged by the grid.
    """

    title: ClassVar[str]
    papers: ClassVar[tuple[str, ...]]
    departs: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[Format, ...]]
    caches: ClassVar[tuple[Format, ...]]
    tasks: ClassVar[tuple[str, ...]]
    aside: ClassVar[tuple[str, ...]] = ()
    off_grid: ClassVar[bool] = True
    controls: ClassVar[tuple[Control, ...]] = (AGAIN, RANDOM_EVICTION)
    findings: ClassVar[tuple[Finding, ...]] = ()
