"""The sessions of all replicas as one list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from thrifty.serving.errors import RequestError


def merged_sessions(answers: Sequence[tuple[int, bytes]]) -> tuple[int, bytes]:
    """Status and body of GET /v1/sessions. answers: status and body of what each replica says to the same request; the
    first refusal is that of all. Raises RequestError (503) where no replica answered.
    """
    if not answers:
        raise RequestError("no replica tells its sessions now; ask again", 503, code="replica_lost")
    for status, body in answers:
        if status != 200:
            return status, body
    sessions: list[dict[str, Any]] = [session for _, body in answers for session in json.loads(body)["data"]]
    sessions.sort(key=lambda session: str(session["id"]))
    return 200, json.dumps({"object": "list", "data": sessions}).encode()
