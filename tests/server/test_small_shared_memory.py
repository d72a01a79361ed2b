"""With the /dev/shm that Docker and Kubernetes give, large bodies are refused, and nobody else notices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.server.small_shared_memory import MEBIBYTES, in_namespace, outcome, why_not

POOL = 8 << 20
_REFUSAL = why_not()
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL)),
]


def check(found: dict[str, object], num_requests: int) -> None:
    assert found["failures"] == [] and found["healthy"] and found["log"] == []
    assert found["mebibytes"] == MEBIBYTES
    assert found["regions"] == [POOL] * 5, "no pool grew"
    assert isinstance(found["requests"], int) and found["requests"] >= num_requests
    assert isinstance(found["ordinary"], int) and found["ordinary"] > 0
    assert isinstance(found["refused"], dict) and len(found["refused"]) == 3, "each kind of refusal was seen"


def test_a_server_lives_and_answers_beside_large_bodies(artifact: Path) -> None:
    check(outcome(artifact, 400), 400)


@pytest.mark.hostile
def test_it_does_so_for_ten_thousand_requests(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_requests = int(os.environ.get("AUTOGLM_HOSTILE_REQUESTS", "10000"))
    found = outcome(artifact, num_requests)
    with capsys.disabled():
        print(f"\n{found}")
    check(found, num_requests)


def test_a_smaller_one_is_refused_in_one_sentence(artifact: Path, tmp_path: Path) -> None:
    serve = [
        "autoglm",
        "serve",
        "--artifact",
        str(artifact),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    shrunk = [part.replace(f"size={MEBIBYTES}m", "size=16m") for part in in_namespace(*serve)]
    done = subprocess.run(
        shrunk, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "the server needs 40.0 MiB of shared memory, and 16.0 MiB are free in /dev/shm; give it more" in done.stderr
