"""What `--runtime auto` found when an artifact was exported, as one line for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def choice_line(found: Mapping[str, Any]) -> str:
    """Of `runtime_details["auto"]`: what each runtime was measured to take, which one was taken, and why not
    another."""
    measured = [f"{name} {_times(times, found)}" for name, times in found["measured"].items()]
    left_out = [f"not {name}: {why}" for name, why in found["left_out"].items()]
    return "; ".join([*([", ".join(measured)] if measured else []), f"took {found['chosen']}", *left_out])


def _times(times: Mapping[str, float], found: Mapping[str, Any]) -> str:
    steps = {
        f"prefill of {found['prefill_tokens']}": times["prefill_ms"],
        f"{found['decode_sequences']} tokens": times["decode_ms"],
        "1 token": times["decode_1_ms"],
    }
    shown = ", ".join(f"{step} in {_milliseconds(value)}" for step, value in steps.items())
    return f"{_milliseconds(times['request_ms'])} a request ({shown})"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
