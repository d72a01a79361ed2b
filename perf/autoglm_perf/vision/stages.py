"""What a server's metrics say of the parts of its requests."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping

IMAGE_STAGES = ("image_decode_time", "image_resize_time", "image_tower_time", "image_encode_time")
_LINE = re.compile(r"^autoglm_(\w+)_seconds_(sum|count)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)

Totals = Mapping[str, tuple[float, float]]  # of a histogram: its sum in seconds, its count


def totals(metrics_url: str) -> Totals:
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        return parsed(response.read().decode())


def parsed(text: str) -> Totals:
    """Over all labels."""
    found: dict[str, list[float]] = {}
    for name, kind, value in _LINE.findall(text):
        found.setdefault(name, [0.0, 0.0])[kind == "count"] += float(value)
    return {name: (total, count) for name, (total, count) in found.items()}


def mean_ms(before: Totals, after: Totals, name: str) -> float:
    """Of what was observed between the two. Raises ValueError where nothing was."""
    (total, count), (old_total, old_count) = after.get(name, (0.0, 0.0)), before.get(name, (0.0, 0.0))
    if count <= old_count:
        raise ValueError(f"the metrics have no new observation of {name}")
    return 1e3 * (total - old_total) / (count - old_count)
