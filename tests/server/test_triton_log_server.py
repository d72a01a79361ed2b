"""What a model of the real server logs is in the server's own log, in its format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.ports import free_ports
from autoglm_client import Client

from tests.support.server.replica import wait_until

ROOT = Path(__file__).parents[2]
LINE = re.compile(
    r"^(?P<level>[IWE])\d{4} [\d:.]+ \d+ log\.py:\d+\] \"?cache\.redis\.connection: (?P<message>.*)$",
    flags=re.MULTILINE,
)

pytestmark = pytest.mark.server


def test_a_warning_of_the_engine_is_in_tritons_log_file(artifact: Path, tmp_path: Path) -> None:
    """One line in Triton's format, and none beside it."""
    log, output = tmp_path / "triton.log", tmp_path / "output.log"
    nobody = f"redis://127.0.0.1:{free_ports('127.0.0.1', 1)[0]}/0"
    env = {"AUTOGLM_REDIS_URL": nobody, "AUTOGLM_REDIS_RETRY_SECONDS": "3600"}
    arguments = (f"--log-file={log}",)
    with LocalServer(
        ROOT / "model_repository", artifact=artifact, env=env, log_file=output, arguments=arguments
    ) as server:
        with Client(server.grpc_url) as client:
            client.generate("Hello", max_tokens=1)
        wait_until(lambda: LINE.search(log.read_text()) is not None)
    found = LINE.findall(log.read_text())
    assert [level for level, _ in found] == ["W"]
    assert "left alone" in found[0][1]
    assert "left alone" not in output.read_text(), "it is in one place"
