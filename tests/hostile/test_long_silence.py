"""A whole answer that is silent for longer than Triton's rule for pings would take of a client that pings as others do.

AUTOGLM_SILENT_S sets for how long.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from autoglm_client import Client, LocalServer, Timeouts

from tests.support.server.silent_model import num_asked, write_silent_repository

pytestmark = [pytest.mark.hostile, pytest.mark.server]

SILENT_SECONDS = float(os.environ.get("AUTOGLM_SILENT_S", "330"))
# Triton's own defaults, in place of what LocalServer sets.
DEFAULTS = (
    "--grpc-http2-min-recv-ping-interval-without-data=300000",
    "--grpc-http2-max-ping-strikes=2",
    "--grpc-http2-max-pings-without-data=2",
)


def test_an_answer_after_minutes_of_silence_arrives_once(tmp_path: Path) -> None:
    repository = write_silent_repository(tmp_path)
    with (
        LocalServer(repository, arguments=DEFAULTS) as server,
        Client(server.grpc_url, timeouts=Timeouts(total=None)) as client,
    ):
        result = client.generate(f"{SILENT_SECONDS:g}")
    assert (result.text, result.attempts, num_asked(repository)) == ("so it was", 1, 1)
    assert result.total_ms >= 1000 * SILENT_SECONDS
