"""A real server one of whose steps takes longer than it may: it ends, and says why."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import NO_RETRIES, AutoGLMError, Client

from tests.support.server.processes import wait_for_end
from tests.support.server.reloading import Repository

pytestmark = pytest.mark.server


def test_a_server_whose_step_hangs_ends(artifact: Path, tmp_path: Path) -> None:
    repository, hangs = Repository(tmp_path, artifact), tmp_path / "hangs"
    repository.edit(
        "engine/1/autoglm_engine/engine/engine.py",
        "            if plan.spans:\n",
        "            if plan.spans:\n                import pathlib, time\n\n"
        f"                if pathlib.Path({str(hangs)!r}).exists():\n                    time.sleep(3600)\n",
    )
    env = {"AUTOGLM_STEP_TIMEOUT_SECONDS": "1", "AUTOGLM_CACHE_MODE": "off"}
    with (
        LocalServer(repository.path, env=env, log_file=tmp_path / "log") as server,
        Client(server.grpc_url, retries=NO_RETRIES) as client,
    ):
        process = psutil.Process(server.pid)
        client.generate("Hello", max_tokens=4)
        hangs.touch()
        with pytest.raises(AutoGLMError) as caught:
            client.generate("Hello", max_tokens=4)
        wait_for_end(process)
    log = (tmp_path / "log").read_text()
    assert re.search(r"a step has been in flight for [1-9]\d* s, more than the 1 s that it may take", log)
    assert "(step_timeout_seconds): the device hangs" in log
    assert "the engine cannot go on and ends its process" in log
    assert "Traceback" not in log
    assert str(caught.value)
