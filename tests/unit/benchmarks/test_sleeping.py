"""Processes of a comparison that sleep while others are measured."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest
from benchmarks.comparison.processes import WorkerError, WorkerProcess
from benchmarks.comparison.sleeping import SleepingProcess
from benchmarks.serving_comparison import servers

SPIN = "import sys, time\nprint('begun', file=sys.stderr, flush=True)\nwhile True: time.sleep(0.01)"


def eventually(process: psutil.Process, *states: str) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until and process.status() not in states:
        time.sleep(0.01)
    return process.status() in states


def test_it_sleeps_wakes_and_ends_whatever_it_does() -> None:
    with SleepingProcess((sys.executable, "-c", SPIN), 1, {}, stdin=subprocess.PIPE) as running:
        seen = psutil.Process(running.pid)
        running.sleep()
        assert eventually(seen, psutil.STATUS_STOPPED)
        running.wake()
        assert eventually(seen, psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING)
        running.sleep()
    assert running.process.returncode == -9, "a process that sleeps is ended, too"
    assert running.last_words() == "", "its log is closed"


def test_a_worker_that_ends_says_its_last_words() -> None:
    words = "import sys; print('no such engine', file=sys.stderr); sys.exit(3)"
    with (
        WorkerProcess(1, (sys.executable, "-c", words)) as worker,
        pytest.raises(WorkerError, match=r"(status 3|is gone): no such engine"),
    ):
        worker.ask(10, task="x")


def test_a_server_that_ends_says_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = servers.ServerKind("gone", (sys.executable, "-c", "print('no port {port}'); raise SystemExit(2)"))
    monkeypatch.setattr(servers, "START_SECONDS", 10.0)
    with pytest.raises(WorkerError, match="gone's server ended with 2: no port"):
        servers.ServerProcess(kind, 1)
