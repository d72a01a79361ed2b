"""20,000 forged requests, events and boards by a local attacker who has only the ports, while others' streams run."""

from __future__ import annotations

import time

import pytest
from autoglm_cli.server.local_server import LocalServer

from tests.server.test_forged_tensors import check_attack
from tests.support.server.forged_tensors import Tally

pytestmark = [pytest.mark.hostile, pytest.mark.server]
NUM_FORGED = 20_000


def test_twenty_thousand_forged_tensors(server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()

    def tell(done: int, tally: Tally) -> None:
        with capsys.disabled():
            print(f"\r{done:6} of {NUM_FORGED} forged, {time.monotonic() - began:5.0f} s", end="", flush=True)

    tally, answers = check_attack(server, NUM_FORGED, tell)
    with capsys.disabled():
        print(f"\n{len(answers)} streams of others, 100 tokens each, all to their end")
        for kind, count in tally.tried.most_common():
            print(f"{count:6} {kind}, of which {tally.accepted[kind]} were answered")
