"""Takes rights away from the current process: memory, core dumps, writing, other programs and the network.

Called by the loader's child before it parses anything. The address-space and write limits are the kernel's; on Linux a
seccomp filter refuses the system calls that reach out, elsewhere Python's audit hook refuses their Python names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import resource
import struct
import sys
from collections.abc import Sequence

# Linux system call numbers: socket, connect, execve, execveat, ptrace, io_uring_setup (kernel syscall tables).
_CALLS = {
    "x86_64": (0xC000003E, (41, 42, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 203, 221, 281, 117, 425)),
}
_X32_BIT = 0x40000000  # x86_64 also takes the numbers of its 32-bit-pointer interface
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF opcodes (linux/filter.h)
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_REACHING_OUT = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.exec", "os.system")


def confine(memory_bytes: int) -> None:
    """Limit this process for good; there is no way back."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS knows the name but refuses the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    sys.addaudithook(_refuse)
    if sys.platform == "linux":
        _filter_calls()


def allow_cpu(seconds: int) -> None:
    """Let this process use `seconds` more of processor time; then the kernel ends it with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = spent + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in _REACHING_OUT:
        raise PermissionError(errno.EPERM, f"a document may not cause {event}")


def filter_steps(architecture: int, numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A classic BPF program, as (opcode, jump if true, jump if false, operand), that refuses these system calls.

    Each jump counts the steps it skips; the last step refuses. Calls of any other architecture are refused.
    """
    count = len(numbers)
    return [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_JUMP_EQUAL, 0, count + 3, architecture),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_AT_LEAST, count + 1, 0, _X32_BIT),
        *((_JUMP_EQUAL, count - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _filter_calls() -> None:
    """Install the seccomp filter; a kernel without seccomp leaves the audit hook alone in place."""
    if platform.machine() not in _CALLS:
        return
    steps = filter_steps(*_CALLS[platform.machine()])
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
