"""Asks a local server over HTTP whether it is well, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json


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
