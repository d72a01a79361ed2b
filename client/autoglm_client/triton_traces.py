"""How tritonserver is told to send its traces to a collector that speaks OTLP over HTTP."""

from __future__ import annotations

from urllib.parse import urlsplit

_PATH = "/v1/traces"


def traces_url(endpoint: str) -> str:
    """Where spans go for a collector at `endpoint`, such as http://127.0.0.1:4318. Raises ValueError where it is no
    URL."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            f"the collector's address is {endpoint!r:.100}: it must be a URL such as http://127.0.0.1:4318"
        )
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith(_PATH) else path + _PATH}"


def trace_arguments(endpoint: str) -> tuple[str, ...]:
    """Of the command line. Rate 0: only requests that bring a context are traced, so whoever asks decides which are."""
    settings = (
        "mode=opentelemetry",
        "rate=0",
        "count=-1",
        "level=TIMESTAMPS",
        f"opentelemetry,url={traces_url(endpoint)}",
        "opentelemetry,resource=service.name=autoglm-triton",
    )
    return tuple(f"--trace-config={setting}" for setting in settings)
