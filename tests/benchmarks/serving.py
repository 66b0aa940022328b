"""Start `tandem serve` and measure it: start, memory, time to first token and in all, for a prompt of a wanted length.

    python tests/benchmarks/serving.py --home .tandem --repeat 5

The prompt length is reached by choosing k; what it came to is printed beside the times. Texts are generated every
time (answer_cache is 0). Processor time is of the service alone, so it says something on a busy machine as well, where
the other times do not. The last figure is what `tandem ask --url` takes beyond the service's own time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

QUESTION = "What does QLoRA add to LoRA?"


def post(url: str, body: dict[str, object]) -> dict:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def wait_until_ready(url: str, process: subprocess.Popen) -> float:
    started = time.perf_counter()
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return time.perf_counter() - started
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the service did not start") from None
            time.sleep(0.05)


def peak_memory(pid: int) -> int:
    """Peak resident memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc: this needs Linux")


def processor_seconds(pid: int) -> float:
    """User and system time of all threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command_line(url: str, environment: dict[str, str], body: dict[str, object]) -> tuple[float, float]:
    """Seconds of `tandem ask --url` beyond those of the service, and its processor time."""
    command = [str(Path(sys.executable).with_name("tandem")), "ask", QUESTION, "--url", url, "--json"]
    for name in ("mode", "k", "max_tokens"):
        command += [f"--{name.replace('_', '-')}" if len(name) > 1 else "-k", str(body[name])]
    used = os.times()
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    whole = time.perf_counter() - started - json.loads(done.stdout)["timings_ms"]["total"] / 1000
    now = os.times()
    return whole, now.children_user + now.children_system - used.children_user - used.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    url = f"http://127.0.0.1:{options.port}"
    environment = {**os.environ, "TANDEM_HOME": options.home, "TANDEM_LOG_LEVEL": "error", "TANDEM_ANSWER_CACHE": "0"}
    command = [str(Path(sys.executable).with_name("tandem")), "serve", "--port", str(options.port)]
    process = subprocess.Popen(command, env=environment)
    try:
        ready = wait_until_ready(url, process)
        idle, loading = peak_memory(process.pid), processor_seconds(process.pid)
        body = {"question": QUESTION, "mode": "rag", "k": options.k, "max_tokens": options.max_tokens}
        answers = [post(f"{url}/ask", body) for _ in range(options.repeat)]
        answering = processor_seconds(process.pid) - loading
        asked = [command_line(url, environment, body) for _ in range(3)]
        peak = peak_memory(process.pid)
    finally:
        process.terminate()
        process.wait()
    first = [answer["timings_ms"]["first_token"] for answer in answers]
    total = [answer["timings_ms"]["total"] for answer in answers]
    retrieve = [answer["timings_ms"]["retrieve"] for answer in answers]
    usage = answers[0]["usage"]
    print("| figure | value |\n|---|---|")
    print(f"| ready after, of that processor time | {ready:.1f} s, {loading:.1f} s |")
    print(f"| prompt, answer | {usage['prompt_tokens']}, {usage['completion_tokens']} tokens |")
    print(f"| retrieval, median | {statistics.median(retrieve):.0f} ms |")
    print(f"| first token, median (first request) | {statistics.median(first):.0f} ms ({first[0]:.0f} ms) |")
    print(f"| whole answer, median (first request) | {statistics.median(total):.0f} ms ({total[0]:.0f} ms) |")
    print(f"| processor time an answer | {answering / options.repeat:.2f} s |")
    print(f"| tandem ask --url of its own, processor time | {min(asked)[0]:.2f} s, {min(asked)[1]:.2f} s |")
    print(f"| peak memory, ready and after the answers | {idle / 2**20:.0f}, {peak / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
