"""Questions about an essay, answered in a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from thrifty.evaluation.tasks.long_documents import LongDocuments


@dataclass(frozen=True, kw_only=True)
class QaEng(LongDocuments):
    """In the place of SCBench's En.QA (novels): the package's prose, of which is asked who said what and how a
    sentence goes on. Options: see `LongDocuments`.
    """

    name: ClassVar[str] = "scbench-qa-eng"
    limit: ClassVar[int] = 40

    document: Literal["any", "essays", "reference", "manual"] = "essays"
