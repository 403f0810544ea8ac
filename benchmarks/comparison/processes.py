"""Worker processes: started, asked, put to sleep between questions, stopped."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.peer_engines.worker")


class WorkerError(Exception):
    """A worker refused, died or took too long; the message says which and shows the end of what it printed.

    said: what it refused with, without that end; else the message.
    """

    def __init__(self, message: str, said: str | None = None) -> None:
        super().__init__(message)
        self.said = message if said is None else said


class WorkerProcess:
    """One worker. Between questions it is stopped (SIGSTOP), so that threads which spin cannot take the CPU."""

    def __init__(self, threads: int, command: tuple[str, ...] = COMMAND) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT, env=environment(threads)
        )
        self._buffer = b""

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the reply. Raises WorkerError; after a timeout the worker is gone."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(timeout))
        except BrokenPipeError as error:
            raise WorkerError(f"the worker is gone: {self._tail()}") from error
        if "error" in reply:
            raise WorkerError(f"{reply['error']} ({self._tail()})", said=reply["error"])
        return reply

    def sleep(self) -> None:
        """Stop it until the next question."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        handle, end = self._process.stdout.fileno(), time.perf_counter() + timeout
        while b"\n" not in self._buffer:
            if not select.select([handle], [], [], max(0.0, end - time.perf_counter()))[0]:
                self.close()
                raise WorkerError(f"no answer within {timeout:.0f} s; the worker was ended")
            piece = os.read(handle, 1 << 16)
            if not piece:
                code = self._process.wait()
                raise WorkerError(f"the worker ended with status {code}: {self._tail()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _tail(self) -> str:
        """The last words on its stderr."""
        if self._log.closed:
            return ""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip()[-200:] for line in lines[-3:])

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(threads: int) -> Mapping[str, str]:
    """The parent's, with the repository importable and every library held to `threads`. Modules keep their compiled
    form, as they do where they are installed: without it a start compiles them all.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "THRIFTY_THREADS")}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | counts | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
