"""Container health: Triton is ready, and each engine itself answers. Exit code 0, else 1 with one sentence.

Readiness alone is not enough: Triton goes on saying that it is ready when a Python model's process hangs or has died.
An engine whose device hangs answers with an error.
Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines import DEFAULT_ENGINE, engines

TIMEOUT = (
    3.0  # seconds for each of two questions, the second to all engines at once; the container's check allows 8 for both
)


def failure(url: str, names: Sequence[str] = (DEFAULT_ENGINE,)) -> str | None:
    """Why the server at `url` is not well, in one sentence; None where it is. `names`: of its engines."""
    control = json.dumps({"control": json.dumps({"stats": True})}).encode()
    if (error := _ask(f"{url}/v2/health/ready", None)) is not None:
        return f"the server is not ready: {error}"
    with ThreadPoolExecutor(len(names)) as pool:
        errors = pool.map(lambda name: _ask(f"{url}/v2/models/{name}/generate", control), names)
    silent = next(((name, error) for name, error in zip(names, errors, strict=True) if error is not None), None)
    return f"the model {silent[0]} does not answer: {silent[1]}" if silent else None


def _ask(url: str, body: bytes | None) -> str | None:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # Docker gives containers its user's proxies
    try:
        with direct.open(request, timeout=TIMEOUT) as response:
            response.read()
    except (OSError, urllib.error.URLError) as error:  # a status of 400 or more is an HTTPError, which is a URLError
        return str(error)
    return None


if __name__ == "__main__":
    repository = Path(os.environ.get("AUTOGLM_MODEL_REPOSITORY", "/model_repository"))
    reason = failure(
        os.environ.get("AUTOGLM_HEALTH_URL", "http://127.0.0.1:8000"), engines(repository) or (DEFAULT_ENGINE,)
    )
    if reason is not None:
        sys.exit(reason)
