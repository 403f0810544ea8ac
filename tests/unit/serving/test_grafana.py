"""The dashboard asks for what the server tells, and for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.unit.serving.live import Live, chat_body, get, post

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Every expression of a panel."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_every_name_is_one_of_the_servers(server: Live) -> None:
    post(server, "/v1/chat/completions", json=chat_body())
    told = set(re.findall(r"^([a-z]+:\w+)", get(server, "/metrics").text, re.MULTILINE))
    asked = {name for query in queries(dashboard()) for name in re.findall(r"[a-z]+:\w+", query)}
    assert len(asked) > 12
    # A gauge that needs a budget, or a disk tier in use, may have no value here.
    assert asked - told == set()


def dashboard() -> dict[str, Any]:
    """As Grafana reads it."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return document


def test_panels_do_not_overlap_and_have_what_grafana_needs() -> None:
    document = dashboard()
    assert document["schemaVersion"] >= 36 and document["uid"] and document["title"]
    assert {item["name"] for item in document["templating"]["list"]} == {"datasource", "model"}
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["title"] and panel["type"] in ("timeseries", "stat")
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")") and "$model" in target["expr"]


def test_rates_are_taken_of_counters_and_quantiles_of_buckets() -> None:
    for query in queries(dashboard()):
        for name in re.findall(r"[a-z]+:\w+", query):
            counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert counts == ("rate(" in query or "increase(" in query), query
        assert ("histogram_quantile" in query) == ("_bucket" in query), query
