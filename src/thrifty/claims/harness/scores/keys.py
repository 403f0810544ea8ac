"""What results of cache tables are kept by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thrifty import registry
from thrifty.evaluation.forcing import Tables
from thrifty.models.head_scores import read

if TYPE_CHECKING:
    from thrifty.models.model import Model


def keyed(cache: Tables, model: Model) -> list[dict[str, Any]]:
    """Cache tables, JSON-ready. One whose technique reads saved scores of heads has a digest of them beside its
    options: results of heads that were probed otherwise are not gone on with.
    """
    return [dict(table) | _heads(table, model) for table in cache]


def _heads(table: Mapping[str, Any], model: Model) -> dict[str, str]:
    kind = getattr(registry.build("cache", table), "kind", None)
    scores = None if kind is None else read(model, kind)
    if scores is None:
        return {}
    text = json.dumps(dataclasses.asdict(scores), sort_keys=True)
    return {"heads": hashlib.sha256(text.encode()).hexdigest()[:16]}


def unchecked(insist: bool) -> list[str]:
    """What a key has besides where nobody looked whether anything was compressed: who insists does not take such a
    result.
    """
    return [] if insist else ["unchecked"]
