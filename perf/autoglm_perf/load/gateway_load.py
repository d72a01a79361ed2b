"""The gateway as a process, and many streams at once through it, each timed as a user of its HTTP API sees it.

The load generator reads server-sent events with aiohttp's parser and looks into few of them: what is measured is the
gateway, not a client library's objects.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autoglm_cli.procfs import ProcFs
from autoglm_cli.server.children import start_child
from autoglm_cli.server.ports import free_ports

from .measures import RequestTiming
from .workload import Workload

_START_SECONDS = 60.0
_DATA, _DONE = b"data: ", b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        return ProcFs().cpu_seconds(self.pid) or 0.0


@contextmanager
def gateway_process(grpc_url: str, *flags: str) -> Iterator[GatewayProcess]:
    """`autoglm gateway` in front of a server."""
    (port,) = free_ports("127.0.0.1", 1)
    command = [sys.executable, "-m", "autoglm_cli", "gateway", "--server", grpc_url, "--port", str(port), *flags]
    process = start_child(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield GatewayProcess(url, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def idle_connections(url: str, count: int) -> Iterator[None]:
    """Open, each after one request, and silent."""
    host, port = url.removeprefix("http://").split(":")
    request = f"GET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    opened = [socket.create_connection((host, int(port)), timeout=10) for _ in range(count)]
    try:
        for one in opened:
            one.sendall(request)
        for one in opened:
            assert one.recv(4096).startswith(b"HTTP/1.1 200"), "an idle connection was refused"
        yield
    finally:
        for one in opened:
            one.close()


def measure_gateway(url: str, workload: Workload, concurrency: int, **asked: Any) -> list[RequestTiming]:
    """Ask every prompt of `workload` as `measure_load` does, past the cache, through `/v1/completions`. `asked`: more
    fields."""
    body = {
        "model": "autoglm",
        "max_tokens": workload.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache": "bypass",
        "stream": True,
        "stream_options": {"include_usage": True},
        **asked,
    }
    return asyncio.run(_ask_all(f"{url}/v1/completions", body, workload.prompts, concurrency))


async def _ask_all(url: str, body: dict[str, Any], prompts: Sequence[str], concurrency: int) -> list[RequestTiming]:
    import aiohttp

    waiting, timings = iter(prompts), list[RequestTiming]()

    async def work(session: aiohttp.ClientSession) -> None:
        for prompt in waiting:
            timings.append(await _ask(session, url, {**body, "prompt": prompt}))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(work(session))
    return timings


async def _ask(session: Any, url: str, body: dict[str, Any]) -> RequestTiming:
    started = time.monotonic()
    first, last, before_done, is_done = 0.0, b"", b"", False
    async with session.post(url, json=body) as response:
        if response.status != 200:
            now = time.monotonic()
            return RequestTiming(started, now, now, 0, (), f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(_DATA):
                continue
            first = first or time.monotonic()
            before_done, last = last, line
            is_done = line.startswith(_DONE)
    now = time.monotonic()
    usage = json.loads(before_done[len(_DATA) :]).get("usage") if is_done else None
    if not usage:
        return RequestTiming(started, first or now, now, 0, (), f"the stream ended with {last[:200]!r}")
    return RequestTiming(started, first, now, int(usage["completion_tokens"]), ())


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/health/ready", timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError("the gateway did not start") from None
            time.sleep(0.1)
