"""Running a Python program that nobody vouches for, and telling whether it came to its end.

What the kernel holds (Linux 5.12 or later, x86_64 and aarch64; nothing is run where it does not):

- **Network**: a network namespace without a connection, and no sockets but pairs of its own.
- **Files**: only Python's own installation and the system's libraries are there, read-only; and an empty /tmp in
  memory.
- **Processes**: none can be made, none outside can be seen, and all end with the run, or with who runs it.
- **Limits**: processor time, memory, threads, open files, the size of files, what is printed, and time by the clock.
- **Environment**: empty. No rights, and none to be had.

What is not held: faults of the kernel itself, what timing tells, and the verdict against a program that knows this file
and looks for the token in its own process, as in every test that shares a process with what it tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import ThriftyError

CONFINED = Path(__file__).with_name("confined.py")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
READ = 65536  # bytes at a time
REPORTED = 4096  # bytes: more than any report has


class SandboxError(ThriftyError):
    """This system cannot confine a program, so none is run."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. seconds: of processor time. clock: seconds by the clock, more, for a machine may be busy.
    memory: bytes of address space. room: bytes of /tmp. printed: bytes of output. files: open at once.
    """

    seconds: int = 5
    clock: float = 60.0
    memory: int = 1 << 30
    room: int = 16 << 20
    printed: int = 64 << 10
    files: int = 32
    threads: int = 64

    def as_resources(self) -> dict[str, int]:
        """By the names of the module `resource`."""
        return {
            "CPU": self.seconds,
            "AS": self.memory,
            "FSIZE": self.room,
            "NOFILE": self.files,
            "NPROC": self.threads,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """passed: whether the program came to its end, with no error and no exit of its own. why: what ended it otherwise.
    printed: the first part of its output, errors included.
    """

    passed: bool
    why: str
    printed: str


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program, the standard library at hand. Raises SandboxError where it cannot be confined."""
    given = limits or Limits()
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="thrifty-sandbox-") as root:
        job = {
            "root": root,
            "visible": visible(),
            "room": given.room,
            "limits": given.as_resources(),
            "program": program,
            "token": token,
        }
        heard = _run(json.dumps(job).encode(), given)
    text = heard.printed.decode(errors="replace")
    if not heard.report.startswith(b"ready"):
        reason = heard.report.decode(errors="replace").removeprefix("refused: ") or heard.stopped or _last_line(text)
        raise SandboxError(
            f"a program cannot be confined here ({reason}): it takes Linux 5.12 or later and namespaces that this user "
            "may make. Run it on such a machine."
        )
    passed = heard.report.endswith(token.encode()) and not heard.stopped and heard.code == 0
    return Outcome(passed, "" if passed else heard.stopped or _killed(heard.code, given) or _last_line(text), text)


def visible(prefix: str = sys.base_prefix, libraries: Sequence[str] = LIBRARIES) -> list[str]:
    """The paths that a confined interpreter needs, none inside another: links first, as they are. Nothing of a virtual
    environment, whose packages may hold the answers of what is run.
    """
    outside = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    wanted = [*libraries, prefix, *(sysconfig.get_path(name, vars=outside) for name in ("stdlib", "platstdlib"))]
    there = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]
    links = [path for path in there if os.path.islink(path)]
    folders = [path for path in there if path not in links]
    outer = [path for path in folders if not any(path.startswith(f"{other}/") for other in folders)]
    return [*links, *outer]


@dataclass(frozen=True)
class _Heard:
    """printed, report: what came from the process. stopped: why this side ended it. code: its exit status."""

    printed: bytes
    report: bytes
    stopped: str
    code: int


def _run(job: bytes, limits: Limits) -> _Heard:
    reading, reporting = os.pipe()
    with open(reading, "rb", buffering=0) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-u", str(CONFINED), str(reporting)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(reporting,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(reporting)
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # where it ends early, the report tells why
                process.stdin.write(job)
            printed, reported, stopped = _received(process.stdout.fileno(), report.fileno(), limits)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
            code = process.wait()
            process.stdout.close()
    return _Heard(printed, reported, stopped, code)


def _received(output: int, report: int, limits: Limits) -> tuple[bytes, bytes, str]:
    """(what was printed, what was reported, why it was stopped), until both are closed."""
    received = {output: b"", report: b""}
    deadline = time.monotonic() + limits.clock
    stopped = ""
    with selectors.DefaultSelector() as selector:
        for place in received:
            selector.register(place, selectors.EVENT_READ)
        while selector.get_map() and not stopped:
            left = deadline - time.monotonic()
            if left <= 0:
                stopped = f"more than {limits.clock:g} s by the clock"
            for key, _ in selector.select(max(0.0, left)):
                data = os.read(key.fd, READ)
                received[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
            if len(received[output]) > limits.printed:
                stopped = f"more than {limits.printed} bytes printed"
            if len(received[report]) > REPORTED:
                stopped = f"more than {REPORTED} bytes where the end is reported"
    return received[output][: limits.printed], received[report], stopped


def _killed(code: int, limits: Limits) -> str:
    """Why a process that was killed was, "" where it ended otherwise. code: 256 - 9, which the outer process
    makes of the inner one's -9; -9 is its own, where the program killed that one.
    """
    return f"more than {limits.seconds} s of processor time" if code == 256 - signal.SIGKILL else ""


def _last_line(text: str) -> str:
    """The end of what was printed, which names an error; else that it ended early."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "ended before its end"
