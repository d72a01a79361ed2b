"""Runs the naive server in a process of its own and times requests against it, one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoglm_cli.server.ports import free_ports

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import Workload


@contextmanager
def naive_server(checkpoint: Path, *, startup_timeout: float = 300.0) -> Iterator[tuple[str, int]]:
    """Yields its URL and its process id."""
    (port,) = free_ports("127.0.0.1", 1)
    command = [sys.executable, "-m", "autoglm_perf.baselines.naive", str(checkpoint), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            _wait_until_ready(process, startup_timeout)
            yield f"http://127.0.0.1:{port}/", process.pid
        finally:
            process.terminate()


def measure_naive(url: str, workload: Workload, progress: Callable[[int], None]) -> list[RequestTiming]:
    """The server takes one request at a time, so its throughput is the same at every concurrency."""
    timings = []
    for prompt in workload.prompts:
        timings.append(_timed_request(url, prompt, workload.max_tokens))
        progress(1)
    return timings


def _timed_request(url: str, prompt: str, max_tokens: int) -> RequestTiming:
    body = json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode()
    started = time.monotonic()
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=600) as response:
        num_tokens = json.load(response)["tokens"]
    finished = time.monotonic()
    return RequestTiming(started, finished, finished, num_tokens, token_gaps=())


def _wait_until_ready(process: subprocess.Popen[str], timeout: float) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    for line in process.stdout:
        if line.strip() == "ready":
            return
        if time.monotonic() > deadline:
            break
    raise RuntimeError(f"the naive server did not come up within {timeout:.0f} s (exit code {process.poll()})")
