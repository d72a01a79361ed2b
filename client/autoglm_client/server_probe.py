"""Looks whether a local server is well, with nothing but the standard library: over HTTP, and at its processes."""

from __future__ import annotations

import http.client
import json
from pathlib import Path


def http_status(host: str, port: int, path: str, timeout: float = 2.0) -> int | None:
    """The status of a GET, None when there is no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def engine_answers(host: str, port: int, timeout: float) -> bool:
    """Whether the engine model answers a control request: its process lives and takes requests."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    body = json.dumps({"control": json.dumps({"stats": True})})
    try:
        connection.request("POST", "/v2/models/engine/generate", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stub_processes(server_pid: int) -> dict[int, str]:
    """The processes of the server's Python models: pid -> model. Those that ended are left out."""
    found: dict[int, str] = {}
    for listing in Path(f"/proc/{server_pid}/task").glob("*/children"):
        for pid in _read(listing).split():
            arguments = _read(Path(f"/proc/{pid}/cmdline")).split("\0")  # empty for one that ended
            model_file = next((Path(a) for a in arguments if a.endswith("/model.py")), None)
            if model_file:
                found[int(pid)] = model_file.parent.parent.name
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
