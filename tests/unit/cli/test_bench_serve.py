"""`thrifty bench-serve` against a scripted server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.unit.loadtest.scripted_server import DONE, HEAD, piece, refusal, scripted, usage

LOAD = ("--model", "m", "--requests", 5, "--input-len", "20-30", "--output-len", 2)


def quick(body: dict[str, Any]) -> Sequence[tuple[float, bytes]]:
    words = sum(len(message["content"].split()) for message in body["messages"])
    return [(0, HEAD), (0.01, piece("a")), (0.01, piece("b") + usage(words, 2) + DONE)]


def test_figures_go_to_people_a_file_a_drawing_and_the_last_line(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    saved, drawn = tmp_path / "figures.json", tmp_path / "figures.svg"
    with scripted(quick) as server:
        found = thrifty(
            "bench-serve",
            server.url,
            *LOAD,
            "--rate",
            50,
            "--goodput",
            "ttft:5000,tpot:5000",
            "-o",
            saved,
            "--plot",
            drawn,
        )
        assert len(server.bodies) == 7 and "thrifty" not in server.bodies[0]  # two of them say what words weigh
    assert found.code == 0, found.err
    assert "to the first token" in found.out and "requests a second" in found.out
    document = found.json()
    assert document["completed"] == 5 and document["request_goodput"] == document["request_throughput"]
    assert (document["model_id"], document["request_rate"], document["num_prompts"]) == ("m", 50.0, 5)
    assert "ttfts" not in document and len(json.loads(saved.read_text())["ttfts"]) == 5
    assert len(list(ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_a_sweep_has_a_run_for_each_rate(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    drawn = tmp_path / "sweep.svg"
    with scripted(quick) as server:
        found = thrifty("bench-serve", server.url, *LOAD, "--sweep", "40,80", "--json", "--plot", drawn)
    document = found.json()
    assert [run["request_rate"] for run in document["runs"]] == [40, 80]
    assert document["saturation_rate"] in (None, 40, 80)
    assert found.out.count("\n") == 1
    assert "NaN" not in drawn.read_text() and ElementTree.parse(drawn)


def test_refused_requests_are_counted_and_shown(thrifty: Callable[..., Any]) -> None:
    asked: list[Any] = []

    def script(body: dict[str, Any]) -> Sequence[tuple[float, bytes]]:
        asked.append(body)
        return [(0, refusal(429, "the queue is full"))] if len(asked) > 4 else quick(body)

    with scripted(script) as server:
        found = thrifty("bench-serve", server.url, *LOAD, "--concurrency", 1)
    assert (found.json()["completed"], found.json()["rejected"], found.json()["failed"]) == (2, 3, 3)
    assert "3 of 5 requests: HTTP 429: the queue is full" in found.message


def test_a_recipe_and_further_fields_go_with_each_request(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[cache]]\ntechnique = "kivi"\nbits = 2\n')
    with scripted(quick) as server:
        found = thrifty("bench-serve", server.url, *LOAD, "-r", recipe, "--extra-body", '{"top_p": 0.5}')
        assert found.code == 0
        assert server.bodies[-1]["thrifty"] == {"cache": [{"technique": "kivi", "bits": 2}]}
        assert server.bodies[-1]["top_p"] == 0.5


MISTAKES = [
    (("--goodput", "tftt:5"), "'tftt' is no objective"),
    (("--sweep", "1,x"), "'x' is no rate"),
    (("--sweep", "1", "--rate", "2"), "leave --rate out"),
    (("--rate", "0"), "--rate is 0"),
    (("--input-len", "many"), "'many' is no length"),
    (("--endpoint", "chats"), "Did you mean 'chat'"),
    (("--extra-body", "{"), "is no JSON"),
    (("--percentiles", "101"), "no list of percentiles"),
    (("--prefix-len", "40"), "would share 40"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[words[0] for words, _ in MISTAKES])
def test_a_wrong_option_is_named(words: tuple[str, ...], said: str, thrifty: Callable[..., Any]) -> None:
    found = thrifty("bench-serve", "http://127.0.0.1:9", *LOAD, *words)
    assert found.code in (1, 2) and said in found.message and "Traceback" not in found.err


def test_a_server_that_is_not_there_is_said(thrifty: Callable[..., Any]) -> None:
    found = thrifty("bench-serve", "http://127.0.0.1:9", *LOAD)
    assert found.code == 1 and "does not answer 'm'" in found.message


def test_ctrl_c_ends_the_load_with_what_was_measured() -> None:
    with scripted(quick) as server:
        words = ["bench-serve", server.url, *map(str, LOAD), "--rate", "4", "--requests", "400", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while len(server.bodies) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    document = json.loads(out)
    assert process.returncode == 130 and document["cancelled"] is True and 1 <= document["completed"] < 400
