"""A reader that stops reading costs bounded memory, and the others nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil
import pytest
from autoglm_client import Client
from autoglm_client.local_server import LocalServer

ROOT = Path(__file__).parent.parent
NUM_READERS, MAX_TOKENS = 8, 600
MEGABYTE = 1 << 20


def stalled_stream(server: LocalServer) -> socket.socket:
    """An HTTP stream that is asked for and never read, with a small receive buffer."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", server.http_port))
    body = f'{{"text_input": "Once upon a time", "stream": true, "max_tokens": {MAX_TOKENS}, "ignore_eos": true}}'
    head = f"POST /v2/models/autoglm/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    reader.sendall((head + body).encode())
    return reader


def memory_of(server: LocalServer) -> int:
    assert server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_full_info().uss for process in family)


@pytest.mark.server
def test_readers_that_stop_reading(server: LocalServer) -> None:
    with Client(server.grpc_url) as client:
        expected = client.generate("The sky is", max_tokens=16, temperature=0.0).text
        client.generate("warm", max_tokens=MAX_TOKENS, ignore_eos=True)
        before, readers = memory_of(server), [stalled_stream(server) for _ in range(NUM_READERS)]
        try:
            deadline = time.monotonic() + 60
            busy, answers = 1, 0
            while busy and time.monotonic() < deadline:
                assert client.generate("The sky is", max_tokens=16, temperature=0.0).text == expected
                answers += 1
                busy = client.stats().engine["slots_busy"]
            assert not busy, "a reader that does not read holds its slot"
            assert answers > 3
            # A response is about a kilobyte; with their key/value slots, streams that nobody reads stay far below this.
            grown = memory_of(server) - before
            assert grown < NUM_READERS * 24 * MEGABYTE, f"{grown / MEGABYTE:.0f} MiB more"
        finally:
            for reader in readers:
                reader.close()
