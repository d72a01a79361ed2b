"""A local attacker with the server's ports, for seconds; for minutes in hostile/test_forged_tensors.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from autoglm_cli.server.local_server import LocalServer

from tests.server.test_server import keep_asking
from tests.support.server.forged_tensors import Tally, attack, processes
from tests.support.server.raw_grpc import Answer, Stream

pytestmark = pytest.mark.server
# Kinds that are what they say they are, and harm nobody: his own events, his own requests.
HARMLESS = {"repeated event", "event passed on before its turn", "repeated request", "wrong tensors"}


def check_attack(
    server: LocalServer, count: int, tell: Callable[[int, Tally], object] = lambda done, tally: None
) -> tuple[Tally, list[Answer]]:
    """No stream of others ends, every message is refused in one sentence, and the processes stay the same."""
    before, traces = processes(server), server.log_text().count("Traceback")
    is_over = threading.Event()
    with Stream(server.grpc_url) as healthy, ThreadPoolExecutor(1) as thread:
        asking = thread.submit(keep_asking, healthy, is_over)
        try:
            tally = attack(server, count, tell)
        finally:
            is_over.set()
        answers = asking.result()
    assert [answer.error for answer in answers] == [""] * len(answers)
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert {answer.last["completion_tokens"].item() for answer in answers} == {100}
    assert tally.tried.total() == count
    assert tally.unclean == []
    assert set(tally.accepted) <= HARMLESS, tally.accepted
    assert server.is_alive() and processes(server) == before
    assert server.log_text().count("Traceback") == traces
    return tally, answers


def test_forged_tensors_end_no_stream(server: LocalServer) -> None:
    tally, answers = check_attack(server, 300)
    print(f"{dict(tally.tried)} beside {len(answers)} streams")
