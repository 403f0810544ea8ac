"""Worker processes: started, asked, put to sleep between questions, stopped."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from benchmarks.comparison.sleeping import SleepingProcess

COMMAND = (sys.executable, "-m", "benchmarks.peer_engines.worker")


class WorkerError(Exception):
    """A worker refused, died or took too long; the message says which and shows the end of what it printed.

    said: what it refused with, without that end; else the message.
    """

    def __init__(self, message: str, said: str | None = None) -> None:
        super().__init__(message)
        self.said = message if said is None else said


class WorkerProcess(SleepingProcess):
    """One worker. It sleeps between questions."""

    def __init__(self, threads: int, command: tuple[str, ...] = COMMAND) -> None:
        self.started = time.perf_counter()
        super().__init__(command, threads, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._buffer = b""

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the reply. Raises WorkerError; after a timeout the worker is gone."""
        assert self.process.stdin is not None
        self.wake()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(timeout))
        except BrokenPipeError as error:
            raise WorkerError(f"the worker is gone: {self.last_words()}") from error
        if "error" in reply:
            raise WorkerError(f"{reply['error']} ({self.last_words()})", said=reply["error"])
        return reply

    def _line(self, timeout: float) -> bytes:
        assert self.process.stdout is not None
        handle, end = self.process.stdout.fileno(), time.perf_counter() + timeout
        while b"\n" not in self._buffer:
            if not select.select([handle], [], [], max(0.0, end - time.perf_counter()))[0]:
                self.close()
                raise WorkerError(f"no answer within {timeout:.0f} s; the worker was ended")
            piece = os.read(handle, 1 << 16)
            if not piece:
                code = self.process.wait()
                raise WorkerError(f"the worker ended with status {code}: {self.last_words()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
