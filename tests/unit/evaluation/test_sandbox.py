"""Programs of bad intent in the sandbox, and what it does where it cannot confine one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from thrifty.evaluation.sandbox import confined, programs
from thrifty.evaluation.sandbox.programs import Limits, Outcome, SandboxError, run_program

SMALL = Limits(seconds=1, clock=20, memory=256 << 20)


@pytest.fixture(scope="module", autouse=True)
def confines() -> None:
    try:
        run_program("pass")
    except SandboxError as error:
        pytest.skip(str(error))


def ran(program: str, limits: Limits = SMALL) -> Outcome:
    return run_program(program, limits)


def test_a_program_that_comes_to_its_end_passes() -> None:
    outcome = ran("import math, re, collections\nprint('told')\nassert math.isqrt(17) == 4\n")
    assert (outcome.passed, outcome.why, outcome.printed) == (True, "", "told\n")


HOSTILE = [
    ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
    ("raise SystemExit(0)", "SystemExit: 0"),
    ("import sys\nsys.exit(0)", "SystemExit: 0"),
    ("import os\nos._exit(0)", "ended before its end"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\nos._exit(3)", "ended before its end"),
    ("def f(:", "SyntaxError"),
    ("input()", "EOFError"),
    ("while True: pass", "more than 1 s of processor time"),
    ("import os\nwhile True: os.fork()", "PermissionError"),
    ("import subprocess\nsubprocess.run(['/bin/true'])", "PermissionError"),
    ("import os\nos.execv('/usr/bin/env', ['env'])", "Error"),
    ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()", "new thread"),
    ("kept = []\nwhile True: kept.append(bytearray(1 << 20))", "MemoryError"),
    ("open('/left-behind', 'w')", "Read-only file system"),
    ("import os\nopen(os.path.dirname(os.__file__) + '/left-behind.py', 'w')", "Read-only file system"),
    ("import os\nos.remove(os.__file__)", "Read-only file system"),
    ("open('big', 'wb').write(bytes(64 << 20))", "OSError"),
    ("open('/proc/1/environ').read()", "No such file or directory"),
    ("open('/etc/passwd').read()", "No such file or directory"),
    ("import socket\nsocket.socket()", "PermissionError"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "PermissionError"),
    ("import socket\nsocket.getaddrinfo('localhost', 80)", "gaierror"),
    ("import os\nos.kill(-1, 9)", "ProcessLookupError"),
    ("import os\nos.setsid()", "PermissionError"),
    ("import os\nos.chroot('/')", "PermissionError"),
    ("import os\nos.mkdir('/usr/lib/left-behind')", "Read-only file system"),
]


@pytest.mark.parametrize(("program", "why"), HOSTILE, ids=[program[:40] for program, _ in HOSTILE])
def test_what_a_program_may_not_do(program: str, why: str) -> None:
    outcome = ran(program)
    assert not outcome.passed and why in outcome.why, outcome


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    outcome = ran("import time\ntime.sleep(60)", Limits(clock=0.5))
    assert (outcome.passed, outcome.why) == (False, "more than 0.5 s by the clock")


def test_a_program_that_ends_its_own_group_ends_nobody_else() -> None:
    for rest in ("", "import time\ntime.sleep(9)", "while True: pass"):  # what it gets to do until it is ended
        outcome = ran(f"import os\nos.killpg(0, 9)\n{rest}")
        assert (outcome.passed, outcome.why) == (False, "ended before its end")
    assert ran("pass").passed


def test_output_without_end_is_cut() -> None:
    outcome = ran("while True: print('x' * 1000)", Limits(printed=5000))
    assert (outcome.passed, outcome.why) == (False, "more than 5000 bytes printed")
    assert len(outcome.printed) == 5000


def test_what_is_written_beside_the_output_is_bounded_too() -> None:
    """Every descriptor that the program has, the one among them that tells its end."""
    program = (
        "import os\n"
        "while True:\n"
        "    for place in range(3, 32):\n"
        "        try: os.write(place, bytes(1024))\n"
        "        except OSError: pass\n"
    )
    outcome = ran(program)
    assert (outcome.passed, outcome.why) == (False, f"more than {programs.REPORTED} bytes where the end is reported")


def test_no_program_outlives_who_runs_it(tmp_path: Path) -> None:
    """Killed, this side cannot end the program: the kernel does."""
    psutil = pytest.importorskip("psutil")
    running = (
        "from thrifty.evaluation.sandbox.programs import Limits, run_program\n"
        "run_program('import time; time.sleep(60)', Limits(clock=60))"
    )
    own = os.environ | {"TMPDIR": str(tmp_path)}  # what it leaves behind goes with the test
    runner = subprocess.Popen([sys.executable, "-c", running], env=own)
    inside: list[Any] = []
    try:
        ends = time.monotonic() + 30
        while len(inside) < 2:
            assert time.monotonic() < ends and runner.poll() is None
            time.sleep(0.05)
            inside = psutil.Process(runner.pid).children(recursive=True)
        time.sleep(0.3)  # until the inner one sleeps
        runner.kill()
        runner.wait()
        ends = time.monotonic() + 5
        while any(map(alive, inside)) and time.monotonic() < ends:
            time.sleep(0.05)
        assert not any(map(alive, inside))
    finally:
        for process in inside:
            if alive(process):
                process.kill()


def alive(process: Any) -> bool:
    """Whether it runs; one that ended and that nobody waits for does not."""
    import psutil

    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_of_this_process_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_SECRET", "4711")
    (tmp_path / "secret").write_text("4711")
    hidden = [str(tmp_path / "secret"), __file__, str(Path.home() / ".bashrc"), "/proc/self", "/etc", "/dev", "/home"]
    outcome = ran(
        "import os\n"
        "assert 'THRIFTY_SECRET' not in os.environ\n"
        f"assert not [path for path in {hidden!r} if os.path.exists(path)]\n"
        "assert os.getpid() == 1 and os.listdir('/tmp') == []\n"
        "open('/tmp/own', 'w').write('x')\n"
    )
    assert outcome.passed, outcome
    assert not Path("/tmp/own").exists(), "its /tmp is not ours"


def test_system_calls_are_refused_whoever_makes_them() -> None:
    outcome = ran(
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, *rest in [('socket', 2, 1, 0), ('socket', 1, 1, 0), ('fork',), ('vfork',), ('unshare', 0),\n"
        "                    ('mount', None, b'/tmp', b'tmpfs', 0, None), ('ptrace', 0, 0, 0, 0)]:\n"
        "    assert getattr(libc, name)(*rest) == -1, name\n"
        "    assert ctypes.get_errno() == 1, name\n"
    )
    assert outcome.passed, outcome


def test_threads_are_allowed() -> None:
    program = (
        "import threading\nseen = []\nown = threading.Thread(target=seen.append, args=(1,))\nown.start()\nown.join()\n"
    )
    assert ran(program + "assert seen == [1]").passed


def test_what_cannot_be_confined_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "visible", lambda: [str(tmp_path / "missing")])
    with pytest.raises(SandboxError, match=r"cannot be confined here \(mount: No such file or directory\).*Linux 5.12"):
        run_program("pass")


def answer_of(steps: list[confined.Instruction], machine: int, number: int, argument: int = 0) -> int:
    """What the kernel does with a filter."""
    looked, place = 0, 0
    while True:
        step = steps[place]
        place += 1
        if step.code == confined.LOAD:
            looked = {confined.NUMBER: number, confined.MACHINE: machine, confined.FIRST_ARGUMENT: argument}[step.value]
        elif step.code == confined.ANSWER:
            return int(step.value)
        else:
            tests = {
                confined.EQUAL: looked == step.value,
                confined.AT_LEAST: looked >= step.value,
                confined.ANY_BIT: bool(looked & step.value),
            }
            place += step.yes if tests[step.code] else step.no


@pytest.mark.parametrize("machine", list(confined.MACHINES))
def test_the_filter_answers_every_system_call(machine: str) -> None:
    own, clone, refused = confined.MACHINES[machine]
    steps = confined.filter_of(machine)
    no = confined.REFUSE | confined.EPERM
    for number in range(600):
        expected = no if number in refused.values() else confined.ALLOW
        if number == confined.CLONE3:
            expected = confined.REFUSE | confined.ENOSYS
        if number != clone:
            assert answer_of(steps, own, number) == expected, number
    assert answer_of(steps, own, clone, 0x11) == no
    assert answer_of(steps, own, clone, confined.CLONE_THREAD | 0xF00) == confined.ALLOW
    assert answer_of(steps, own, confined.X32 | 41) == no
    assert answer_of(steps, own + 1, 0) == confined.KILL
    log = {"x86_64": 103, "aarch64": 116}[machine]
    assert answer_of(steps, own, log) == no, "the log of the kernel tells of others"


def test_a_machine_that_is_not_known_runs_nothing() -> None:
    with pytest.raises(confined.Refused, match="riscv64 are not known; known are x86_64, aarch64"):
        confined.filter_of("riscv64")


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="there is no virtual environment")
def test_nothing_of_a_virtual_environment_is_shown() -> None:
    assert not [path for path in programs.visible() if Path(path).is_relative_to(sys.prefix)]
    outcome = ran(f"import os, math, json, ctypes\nassert not os.path.exists({sys.prefix!r})")
    assert outcome.passed, outcome


def test_only_outer_folders_are_shown(tmp_path: Path) -> None:
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    paths = programs.visible(str(tmp_path / "usr"), [str(tmp_path / name) for name in ("lib", "usr/lib", "none")])
    assert paths[0] == str(tmp_path / "lib") and str(tmp_path / "usr") in paths
    assert str(tmp_path / "usr" / "lib") not in paths and str(tmp_path / "none") not in paths
