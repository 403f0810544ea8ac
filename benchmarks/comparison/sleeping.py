"""A process of a comparison: put to sleep while others are measured, and ended whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
LAST_BYTES = 4000


class SleepingProcess:
    """A program that runs. While it sleeps (SIGSTOP) threads of it that spin cannot take the CPU.

    process: as `subprocess` has it. log: what it says.
    """

    def __init__(self, words: Sequence[str], threads: int, variables: Mapping[str, str], **pipes: Any) -> None:
        """threads: to which every library is held. variables: of its environment, beside these. pipes: as `Popen` takes
        them; what it says goes to the log where they do not say otherwise.
        """
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        streams = {"stdout": self.log, "stderr": self.log} | pipes
        environ = {**environment(threads), **variables}
        self.process = subprocess.Popen(list(words), cwd=ROOT, env=environ, **streams)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    def wake(self) -> None:
        """Let it run."""
        self.process.send_signal(signal.SIGCONT)

    def sleep(self) -> None:
        """Stop it until it is woken."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def last_words(self) -> str:
        """The end of what it said, in one line."""
        if self.log.closed:
            return ""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip()[-200:] for line in lines[-3:])

    def __enter__(self) -> Self:
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
