"""Container health: Triton is ready, and the engine itself answers. Exit code 0, else 1 with one sentence.

Readiness alone is not enough: Triton goes on saying that it is ready when a Python model's process hangs or has died.
Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request

TIMEOUT = 3.0  # seconds for each of the two questions; the container's health check allows 8 for both


def failure(url: str) -> str | None:
    """Why the server at `url` is not well, in one sentence; None where it is."""
    control = json.dumps({"control": json.dumps({"stats": True})}).encode()
    if (error := _ask(f"{url}/v2/health/ready", None)) is not None:
        return f"the server is not ready: {error}"
    if (error := _ask(f"{url}/v2/models/engine/generate", control)) is not None:
        return f"the engine does not answer: {error}"
    return None


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
    reason = failure(os.environ.get("AUTOGLM_HEALTH_URL", "http://127.0.0.1:8000"))
    if reason is not None:
        sys.exit(reason)
