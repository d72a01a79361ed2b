"""Settings within their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from .error import SettingsError


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Of each of `ranges` that is set at all. Raises SettingsError, which names the value and the range."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:  # also refuses NaN
            raise SettingsError(f"the setting {name} is {value}; it must be between {_number(low)} and {_number(high)}")


def _number(bound: float) -> str:
    """Whole ones with all their digits."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"
