"""What each model of the page is asked, unless the command line says otherwise."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASKS = "recall,recall:mode=aware,recall-many,multi-turn,multi-request,tracing,kl"
SHORT = "recall,recall:mode=aware,multi-turn,kl"


@dataclass(frozen=True)
class Section:
    """length: tokens of a question's context. items: questions a task. budgets: shares of the prompt that are kept.
    context: tokens before speed is measured; 0 leaves it out. options: of techniques that cannot have their
    defaults here.
    """

    model: str
    length: int = 1024
    items: int = 12
    budgets: str = "0.5,0.25,0.125"
    tasks: str = TASKS
    context: int = 6000
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


SECTIONS = (
    Section("qwen2.5-coder-1.5b", length=4096, items=8, budgets="0.5,0.25", tasks=SHORT, context=8192),
    Section("qwen2.5-coder-0.5b", length=4096, items=12, budgets="0.5,0.25", tasks=SHORT, context=8192),
    Section("smollm2-135m", length=512, items=8, budgets="0.5,0.25", tasks=SHORT),
    Section("recall-2m", length=2048, context=2048, options={"kvmerger": {"first": 0, "last": 0}}),
)
"""Models that people run first; then a small one that is timed in minutes, and one that was trained to look keys up,
which tells techniques apart and no more."""


def sections(options: argparse.Namespace) -> list[Section]:
    """Those of the command line's models, all where it names none, with what else it says in place of their own."""
    known = {section.model: section for section in SECTIONS}
    models = options.model or list(known)
    given = {
        one.name: value
        for one in dataclasses.fields(Section)
        if one.name not in ("model", "options") and (value := getattr(options, one.name)) is not None
    }
    return [dataclasses.replace(known.get(model, Section(model)), **given) for model in models]
