"""One tenant of ten attacks, by every means that a client has: the other nine hardly notice, and nothing ends.

Phases with and without the attack take turns, so that the machine's own moods fall on both. AUTOGLM_HOSTILE_SECONDS
(1,200) is the time for all phases; a run of 160 shows that it works and measures little.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from autoglm_cli.server.ports import free_ports

from tests.support.server.hostile_clients import ALL, KINDS
from tests.support.server.raw_http import wait_until
from tests.support.server.well_behaved import Seen, Tenants

pytestmark = pytest.mark.hostile

SECONDS = float(os.environ.get("AUTOGLM_HOSTILE_SECONDS", "1200"))
PHASES = (*KINDS, ALL)
PHASE_SECONDS = SECONDS / (2 * len(PHASES))
SETTLE_SECONDS = min(5.0, PHASE_SECONDS / 4)  # after an attack, until what it left has been dealt with
WORSE = 1.5  # times the p95 of the others, at most
SERVE = [sys.executable, "-m", "autoglm_cli", "serve", "--gateway"]
CLIENTS = Path(__file__).parent.parent / "support" / "server" / "hostile_clients.py"


@dataclass(frozen=True, slots=True)
class Served:
    process: subprocess.Popen[bytes]
    port: int
    keys: tuple[str, ...]  # the last one is the attacker's
    started: frozenset[tuple[int, float]]  # every process of it, when it was ready

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ended(self) -> set[tuple[int, float]]:
        return set(self.started) - _processes(self.process.pid)


def _processes(pid: int) -> set[tuple[int, float]]:
    parent = psutil.Process(pid)
    return {(one.pid, one.create_time()) for one in (parent, *parent.children(recursive=True))}


@pytest.fixture
def served(artifact: Path, tmp_path: Path) -> Iterator[Served]:
    """As an operator would who lets ten tenants in: each may have two requests under way."""
    from autoglm_gateway.settings.keys import line_of, new_key

    keys = tuple(new_key() for _ in range(10))
    (tmp_path / "keys.toml").write_text("\n".join(line_of(f"tenant-{n}", key) for n, key in enumerate(keys)))
    config = tmp_path / "gateway.toml"
    config.write_text(f'keys_file = "{tmp_path / "keys.toml"}"\nconcurrency = 2\nrequests_per_minute = 600\n')
    (port,) = free_ports("127.0.0.1", 1)
    ports = ["--gateway-port", str(port), "--grpc-port", "0", "--metrics-port", "0"]
    command = [*SERVE, "--artifact", str(artifact), *ports, "--gateway-config", str(config)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: _is_ready(port) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "serve.log").read_text()
        yield Served(process, port, keys, frozenset(_processes(process.pid)))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def attacked(served: Served, tenants: Tenants, kind: str) -> dict[str, int]:
    """What the attacker was answered."""
    command = [sys.executable, str(CLIENTS), kind, str(served.port), served.keys[-1], str(PHASE_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdout is not None and attacker.stdout.readline() == "begun\n"
        tenants.phase = kind
        found: dict[str, int] = json.loads(attacker.stdout.read())
        tenants.phase = ""
    return found


def test_nine_tenants_hardly_notice_the_tenth(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    tell(f"\n{len(PHASES)} attacks of {PHASE_SECONDS:.0f} s, and as long without one before each")
    answered = dict[str, dict[str, int]]()
    with Tenants(served.url, served.keys[:-1]) as tenants:
        for kind in PHASES:
            _quiet(served, tenants, f"before {kind}")
            answered[kind] = attacked(served, tenants, kind)
            tell(_row(kind, tenants.seen[f"before {kind}"], tenants.seen[kind], answered[kind]))
            assert served.process.poll() is None and not served.ended(), f"{kind} ended a process"
            time.sleep(SETTLE_SECONDS)
    assert _is_ready(served.port) and not served.ended()
    quiet, attack = _together(tenants, [f"before {kind}" for kind in PHASES]), _together(tenants, PHASES)
    tell(_row("together", quiet, attack, {}))
    assert not quiet.failures + attack.failures, (quiet.failures + attack.failures)[:5]
    assert all(counts["asked"] for counts in answered.values()), "an attack that did not take place"
    assert attack.percentile(0.95) <= WORSE * quiet.percentile(0.95)


def _quiet(served: Served, tenants: Tenants, phase: str) -> None:
    """The tenth behaves as the others do."""
    with Tenants(served.url, served.keys[-1:]):
        time.sleep(min(2.0, SETTLE_SECONDS))
        tenants.phase = phase
        time.sleep(PHASE_SECONDS)
        tenants.phase = ""


def _together(tenants: Tenants, phases: tuple[str, ...] | list[str]) -> Seen:
    return sum((tenants.seen[phase] for phase in phases), Seen())


def _row(kind: str, quiet: Seen, attack: Seen, answered: dict[str, int]) -> str:
    before, during = quiet.percentile(0.95), attack.percentile(0.95)
    times = f"p95 {before * 1e3:6.0f} -> {during * 1e3:6.0f} ms, {during / before:5.2f} times"
    counts = f"{len(quiet.seconds)} and {len(attack.seconds)} answers, {len(quiet.failures + attack.failures)} failed"
    said = ", ".join(f"{status} {count}" for status, count in sorted(answered.items()))
    return f"{kind:<13} {times}; {counts}; the attacker: {said or '-'}"
