"""What an artifact's manifest says of the GPU that it was checked on, in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOTES = ("attention_note", "vision_note", "image_note", "device_check_note")
NAMES = ("device_check", *_NOTES, "reference")  # the manifest's own


def device_lines(details: Mapping[str, Any]) -> list[str]:
    """`details`: the manifest's `runtime_details`. None of an artifact that is not for a GPU of TensorRT's."""
    notes = [str(details[name]) for name in _NOTES if details.get(name)]
    if (found := details.get("device_check")) is not None:
        return [*notes, _told(found)]
    if "module" in details and "device_check_note" not in details:
        return [*notes, "not checked on a GPU yet (autoglm export --check does)"]
    return notes


def _told(found: Mapping[str, Any]) -> str:
    return (
        f"checked on {found['device']} ({found['compute_capability']}, driver {found['driver']}), version "
        f"{found['version']}, {found['time']}: {found['attention']} attention at a capacity of "
        f"{found['capacity']:,} is at most {found['worst_error']:.2g} off (allowed {found['bound']:g}), "
        f"{found['equal_tokens']} of {found['tokens']} tokens are the reference's"
    )
