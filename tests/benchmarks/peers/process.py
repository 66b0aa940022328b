"""A server as a process of its own: its cores, when it is ready, its processor time and its memory (Linux, /proc)."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 600
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers at `url`; `ready_seconds` is how long it took until it did."""

    url: str
    pid: int
    ready_seconds: float

    def cpu_seconds(self) -> float:
        """Processor time of the process and all below it, since it began."""
        return sum(_cpu_seconds(pid) for pid in _family(self.pid))

    def peak_mebibytes(self) -> float:
        """The most memory that was resident at once, of the process and all below it that still run."""
        return sum(_status(pid, "VmHWM") for pid in _family(self.pid)) / 1024


@contextlib.contextmanager
def serving(
    command: Sequence[str], environment: Mapping[str, str], cores: set[int], ready_path: str, log: Path
) -> Iterator[Running]:
    """Run the command, with {port} in it replaced by a free port, on these cores until the block ends."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        _wait(process, url + ready_path, began, log)
        yield Running(url, process.pid, time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, began: float, log: Path) -> None:
    while time.perf_counter() - began < READY_SECONDS:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} was not ready in {READY_SECONDS} s:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _family(root: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(_fields(int(folder.name))[1])
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat after the name, which may hold spaces: the state is 0, the parent 1, times 11 to 14."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    """In user and kernel mode, with that of children that have ended."""
    return sum(map(int, _fields(pid)[11:15])) / TICK


def _status(pid: int, name: str) -> int:
    """A field of /proc/PID/status in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise SystemExit(f"no {name} in /proc/{pid}/status: this needs Linux")
