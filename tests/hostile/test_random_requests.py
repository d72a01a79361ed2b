"""30,000 random requests in some 300 worlds: what the suite asks of a few."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter

import pytest

from tests.support.engine.random_world import World

NUM_REQUESTS = int(os.environ.get("AUTOGLM_RANDOM_REQUESTS", "30000"))
PER_WORLD = 100
# Each of these must have been among what happened, or the test says little.
KINDS = (
    "greedy",
    "seeded",
    "guided",
    "cancelled",
    "deadline",
    "exact",
    "coalesced",
    "drafts accepted",
    "failed step",
    "own failure",
    "own error",
    "guide failed",
    "shut down",
    "QueueFull",
    "NotCached",
)


@pytest.mark.hostile
def test_no_answer_is_lost_double_or_wrong(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A failure names the world's seed: `World(seed).run(100)` repeats it, but for when lookups end."""
    caplog.set_level(logging.CRITICAL + 1)  # thousands of failures are meant, each with its traceback
    ends: Counter[str] = Counter()
    began, first_seed = time.monotonic(), time.time_ns() // 1_000_000 % 1_000_000_000
    with capsys.disabled():
        print(f"\nseeds from {first_seed}")
        while ends["requests"] < NUM_REQUESTS:
            World(first_seed + ends["worlds"], ends).run(min(PER_WORLD, NUM_REQUESTS - ends["requests"]))
            ends["worlds"] += 1
            if ends["worlds"] % 10 == 0:
                print(f"{ends['requests']:,} requests after {time.monotonic() - began:.0f} s: {dict(ends)}", flush=True)
        print(f"all answered as if alone: {dict(ends)}")
    if NUM_REQUESTS >= 3000:
        assert not [kind for kind in KINDS if not ends[kind]]
