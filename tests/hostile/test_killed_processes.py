"""Each process of a serving replica is killed, told to end, or stopped and then continued or killed, again and again:
what is left after five seconds is nothing, the next one starts at once, and answers under way end with an error.

AUTOGLM_KILLS (1): times each; AUTOGLM_STOP_SECONDS (30): how long a process is stopped. All of it 20 times takes hours.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from autoglm_client import Client, ConnectionLost, LocalServer, Timeouts

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.replica import FAMILY, LongStream, Replica, free_ports, wait_until

pytestmark = pytest.mark.hostile
KILLS = int(os.environ.get("AUTOGLM_KILLS", "1"))
STOP_SECONDS = float(os.environ.get("AUTOGLM_STOP_SECONDS", "30"))
LEFT_SECONDS = 5.0
# How long what goes on may take to show: a stopped engine is given up after three looks of 5 s, an end is given 10 s.
NOTICED_SECONDS = 120.0
KILL, TERM, STOP, CONT = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT
# Without these processes, or with these stopped, nobody is answered: the replica ends by itself.
ENDS_BY = {
    KILL: {*FAMILY} - {"watch", "template"},
    TERM: {"cli", "gateway", "tritonserver"},
    STOP: {"tritonserver", "engine"},
}
WAYS = [(KILL, None), (TERM, None), (STOP, CONT), (STOP, KILL)]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """The same for all: what one leaves there, the next meets."""
    return free_ports()


@pytest.fixture
def replica(artifact: Path, ports: dict[str, int], tmp_path: Path) -> Iterator[Replica]:
    running = Replica(artifact, ports, tmp_path)
    yield running
    running.kill()


@pytest.mark.parametrize("time_number", range(KILLS))
@pytest.mark.parametrize(("number", "then"), WAYS, ids=["kill", "term", "stop-cont", "stop-kill"])
@pytest.mark.parametrize("name", FAMILY)
def test_nothing_is_left(
    replica: Replica, name: str, number: signal.Signals, then: signal.Signals | None, time_number: int
) -> None:
    stream = LongStream(replica)
    began = time.monotonic()
    replica.family[name].send_signal(number)
    if then is not None:
        _stay_stopped(replica, name)
        if replica.family[name].is_running():
            replica.family[name].send_signal(then)
    ends = name in ENDS_BY[number] or (then == KILL and name in ENDS_BY[KILL])
    if ends:
        wait_until(lambda: replica.has_ended, STOP_SECONDS + NOTICED_SECONDS)
    else:
        assert replica.answers() or _ended(replica), "it neither answers nor ends"
    ended_after = time.monotonic() - began
    if not replica.has_ended:
        replica.family["cli"].send_signal(KILL if time_number % 2 else TERM)
        wait_until(lambda: replica.has_ended, NOTICED_SECONDS)
    left_seconds = _seconds_until_nothing_is_left(replica)
    wait_until(lambda: stream.outcome is not None, LEFT_SECONDS)
    assert stream.outcome == "complete" or str(stream.outcome).startswith(("error", "cut"))
    assert "Traceback" not in replica.said
    how = signal.Signals(number).name + (f", {signal.Signals(then).name}" if then else "")
    what = f"ended after {ended_after:.1f} s" if ends else "went on"
    print(
        f"\n{name} {how}: {what}; nothing left after {left_seconds:.1f} s; stream {stream.outcome:.60}; "
        f"start {replica.start_seconds:.1f} s"
    )


@pytest.mark.parametrize("time_number", range(KILLS))
def test_what_nobody_could_remove_is_swept_by_the_next_start(
    artifact: Path, ports: dict[str, int], tmp_path: Path, time_number: int
) -> None:
    killed = Replica(artifact, ports, tmp_path)
    try:
        for name, number in (
            ("cli", STOP),
            ("watch", KILL),
            ("engine", STOP),
            ("cli", KILL),
        ):  # it starts no other watch
            killed.family[name].send_signal(number)
        wait_until(lambda: killed.has_ended)
        assert any("autoglm-server-" in each for each in killed.left()), "there was nothing to sweep"
        following = Replica(artifact, ports, tmp_path)
        try:
            theirs = {str(path) for path in following.temporary.iterdir()}
            ports_taken = [each for each in killed.left() if "cannot listen" in each]
            assert set(killed.left()) - theirs - set(ports_taken) == set()
        finally:
            following.family["cli"].send_signal(TERM)
            wait_until(lambda: following.has_ended)
            following.kill()
    finally:
        killed.kill()


def test_a_client_gives_a_stopped_server_up_by_itself(artifact: Path) -> None:
    """Nobody else looks after the server here, and the client has no time limits."""
    forever = Timeouts(first_token=None, between_tokens=None, total=None)
    with (
        LocalServer(MODEL_REPOSITORY, artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}) as server,
        Client(server.grpc_url, timeouts=forever) as client,
        client.stream("Once", max_tokens=900, ignore_eos=True) as stream,
    ):
        next(stream)
        psutil.Process(server.pid).suspend()
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            list(stream)
        assert time.monotonic() - began < 60
        print(f"\na stopped server is given up after {time.monotonic() - began:.1f} s")


def _stay_stopped(replica: Replica, name: str) -> None:
    """As long as that is bearable to the others."""
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until and not replica.has_ended:
        time.sleep(0.1)


def _ended(replica: Replica) -> bool:
    """A model that Triton gave up while it was stopped ends when it goes on, and the replica with it."""
    wait_until(lambda: replica.has_ended, NOTICED_SECONDS)
    return True


def _seconds_until_nothing_is_left(replica: Replica) -> float:
    began = time.monotonic()
    while left := replica.left():
        assert time.monotonic() - began < LEFT_SECONDS, left
        time.sleep(0.02)
    return time.monotonic() - began
