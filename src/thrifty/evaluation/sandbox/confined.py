"""The inner side of the sandbox: this file is run by an interpreter of its own, with the standard library alone.

A job comes on standard input as JSON. The order of the steps is what makes them hold: first namespaces and the file
system (which take rights), then a fork into the new process namespace, limits, the end of all rights, the filter of
system calls, and only then the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import traceback
from typing import Any

LIBC = "libc.so.6"
NEW = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWIPC, NEWUSER, NEWPID and NEWNET: mounts, shared memory, users, processes and network of its own."""

NOBODY = 65534
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 442, -100, 0x8000, 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
SIGKILL = 9
CAPABILITIES = 0x20080522  # version 3 of the structures of capset

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # what a filter answers; REFUSE takes an error number
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the filter
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16  # places in what it looks at
CLONE_THREAD = 0x00010000
X32 = 0x40000000  # numbers from here on belong to another interface of the same x86 kernel

MACHINES = {
    "x86_64": (
        0xC000003E,
        56,
        {
            "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "shmget": 29, "semget": 64, "msgget": 68,
            "ptrace": 101, "syslog": 103, "setpgid": 109, "setsid": 112, "pivot_root": 155, "mount": 165,
            "umount2": 166, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
            "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319, "bpf": 321,
            "execveat": 322, "userfaultfd": 323, "io_uring_setup": 425,
        },
    ),
    "aarch64": (
        0xC00000B7,
        220,
        {
            "umount2": 39, "mount": 40, "pivot_root": 41, "unshare": 97, "syslog": 116, "ptrace": 117, "setpgid": 154,
            "setsid": 157, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "add_key": 217,
            "request_key": 218, "keyctl": 219, "execve": 221, "perf_event_open": 241, "setns": 268,
            "process_vm_readv": 270, "process_vm_writev": 271, "memfd_create": 279, "bpf": 280, "execveat": 281,
            "userfaultfd": 282, "io_uring_setup": 425,
        },
    ),
}  # fmt: skip
"""By machine: its number for the filter, the number of `clone`, and the system calls that are refused."""
CLONE3 = 435  # on both; "not there" makes the C library use `clone`, whose flags a filter can read


class Refused(Exception):
    """The system does not allow a step."""


class MountAttributes(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("shared", ctypes.c_uint64),
        ("of", ctypes.c_uint64),
    )


class Instruction(ctypes.Structure):
    """`struct sock_filter`: where `yes` and `no` are how many instructions are jumped over."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class Filter(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction)))


def main() -> None:
    """Confine this process and run the job: {"root", "visible", "room", "limits", "program", "token"}.

    What is written to the descriptor in the first argument: "refused: why", or "ready" before the program runs and the
    job's token after it came to its own end.
    """
    job, report = json.load(sys.stdin), int(sys.argv[1])
    libc = ctypes.CDLL(LIBC, use_errno=True)
    try:
        instructions = filter_of(os.uname().machine)
        leave(libc)
        build(libc, job["root"], job["visible"], job["room"])
        call(libc, "prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # after what takes rights, which would undo it
    except (Refused, OSError) as error:
        os.write(report, f"refused: {error}".encode())
        os._exit(1)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) % 256)
    try:
        call(libc, "prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        limit(job["limits"])
        renounce(libc)
        forbid(libc, instructions)
    except (Refused, OSError, ValueError) as error:
        os.write(report, f"refused: {error}".encode())
        os._exit(1)
    os.write(report, b"ready ")
    run(job["program"], report, job["token"].encode())


def call(libc: Any, name: str, *arguments: Any) -> None:
    """A function of the C library. Raises Refused where it fails."""
    if getattr(libc, name)(*arguments) != 0:
        raise Refused(f"{name}: {os.strerror(ctypes.get_errno())}")


def leave(libc: Any) -> None:
    """Namespaces of this process's own: no network, no processes, no rights outside."""
    user, group = os.getuid(), os.getgid()
    call(libc, "unshare", NEW)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def build(libc: Any, root: str, visible: list[str], room: int) -> None:
    """A file system of nothing but the paths in `visible`, read-only, and an empty /tmp of so many bytes of memory."""
    flags = MS_NOSUID | MS_NODEV
    call(libc, "mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    call(libc, "mount", b"tmpfs", root.encode(), b"tmpfs", flags, b"size=1m,mode=755")
    for path in visible:
        _show(libc, path, root + path)
    os.makedirs(root + "/tmp", exist_ok=True)
    call(libc, "mount", b"tmpfs", f"{root}/tmp".encode(), b"tmpfs", flags, f"size={room},mode=777".encode())
    _protect(libc, root, recursive=False)
    os.chdir(root)
    call(libc, "pivot_root", b".", b".")
    call(libc, "umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def _show(libc: Any, path: str, place: str) -> None:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    os.makedirs(place, exist_ok=True)
    call(libc, "mount", path.encode(), place.encode(), None, MS_BIND | MS_REC, None)
    _protect(libc, place, recursive=True)


def _protect(libc: Any, path: str, *, recursive: bool) -> None:
    wanted = MountAttributes(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    depth, size = AT_RECURSIVE if recursive else 0, ctypes.sizeof(wanted)
    call(libc, "syscall", MOUNT_SETATTR, AT_FDCWD, path.encode(), depth, ctypes.byref(wanted), size)


def limit(limits: dict[str, int]) -> None:
    """What the process may use at most, by the names of `resource`."""
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def renounce(libc: Any) -> None:
    """No rights, and none to be had again."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    none = (ctypes.c_uint32 * 6)()
    call(libc, "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(libc, "capset", ctypes.byref(header), ctypes.byref(none))


def filter_of(machine: str) -> list[Instruction]:
    """The filter of system calls. Raises Refused for a machine whose numbers are not known."""
    if machine not in MACHINES:
        raise Refused(f"the system calls of {machine} are not known; known are {', '.join(MACHINES)}")
    number, clone, refused = MACHINES[machine]
    steps = [
        Instruction(LOAD, 0, 0, MACHINE),
        Instruction(EQUAL, 1, 0, number),
        Instruction(ANSWER, 0, 0, KILL),
        Instruction(LOAD, 0, 0, NUMBER),
    ]
    steps += [Instruction(AT_LEAST, 0, 1, X32), Instruction(ANSWER, 0, 0, REFUSE | EPERM)]
    steps += [Instruction(EQUAL, 0, 1, CLONE3), Instruction(ANSWER, 0, 0, REFUSE | ENOSYS)]
    for forbidden in sorted(refused.values()):
        steps += [Instruction(EQUAL, 0, 1, forbidden), Instruction(ANSWER, 0, 0, REFUSE | EPERM)]
    steps += [  # threads are allowed, processes are not
        Instruction(EQUAL, 0, 3, clone),
        Instruction(LOAD, 0, 0, FIRST_ARGUMENT),
        Instruction(ANY_BIT, 1, 0, CLONE_THREAD),
        Instruction(ANSWER, 0, 0, REFUSE | EPERM),
        Instruction(ANSWER, 0, 0, ALLOW),
    ]
    return steps


def forbid(libc: Any, instructions: list[Instruction]) -> None:
    """Put the filter in force, for good."""
    program = (Instruction * len(instructions))(*instructions)
    call(libc, "prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(instructions), program)), 0, 0)


def run(program: str, report: int, token: bytes) -> None:
    """Run the program; the token is written where it came to its own end, and no exit of its own does that."""
    write, leave_now, show = os.write, os._exit, traceback.print_exc
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException:
        show(limit=-1)
        leave_now(1)
    write(report, token)
    leave_now(0)


if __name__ == "__main__":
    main()
