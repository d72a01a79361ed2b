"""A real server one of whose steps takes longer than it may: it ends, and says why."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import NO_RETRIES, AutoGLMError, Client

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.processes import has_ended, wait_for_end

pytestmark = pytest.mark.server


def test_a_server_whose_step_hangs_ends(artifact: Path, tmp_path: Path) -> None:
    """Every step is longer than a microsecond; sooner or later the watch looks while one is in flight."""
    env = {"AUTOGLM_STEP_TIMEOUT_SECONDS": "0.000001", "AUTOGLM_CACHE_MODE": "off"}
    with (
        LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env, log_file=tmp_path / "log") as server,
        Client(server.grpc_url, retries=NO_RETRIES) as client,
    ):
        process = psutil.Process(server.pid)
        with pytest.raises(AutoGLMError) as caught:
            while not has_ended(process):
                client.generate("Hello", max_tokens=64, ignore_eos=True)
        wait_for_end(process)
    log = (tmp_path / "log").read_text()
    assert "a step has been in flight for 0 s, more than the 1e-06 s that it may take (step_timeout_seconds)" in log
    assert "the engine cannot go on and ends its process" in log
    assert "Traceback" not in log
    assert str(caught.value)
