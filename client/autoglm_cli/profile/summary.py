"""The lines that every view of a profile begins with."""

from __future__ import annotations

from .figures import Latency
from .report import Profile


def headline(profile: Profile) -> str:
    figures, run = profile.figures, profile.run
    failed = f", {figures.failed} failed" if figures.failed else ""
    return (
        f"{figures.served} requests{failed}, {run.concurrency} at once, {run.seconds:.1f} s: "
        f"{figures.requests_per_second:.2f} requests/s, {figures.tokens_per_second:,.0f} tokens/s"
    )


def latencies(profile: Profile) -> list[tuple[str, str, str]]:
    """(name, p50, p95), milliseconds."""
    figures = profile.figures
    rows = (
        ("time to first token", figures.first_token),
        ("inter-token latency", figures.inter_token),
        ("whole request", figures.total),
    )
    return [(name, _ms(latency.p50), _ms(latency.p95)) for name, latency in rows if isinstance(latency, Latency)]


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.1f}"
