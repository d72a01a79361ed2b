"""How large an image becomes, where its part of a message says so: within what the artifact was exported for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import VisionSettings

DETAILS = ("auto", "low", "high")
LOW_DETAIL_PIXELS = 512 * 512  # of the picture
_NUMBERS = ("min_pixels", "max_pixels")


@dataclass(frozen=True, slots=True)
class AskedSize:
    """`min_pixels` and `max_pixels` count as `VisionSettings` does; None is the artifact's own. `detail`: OpenAI's;
    low is at most `LOW_DETAIL_PIXELS` where there is no `max_pixels`, auto and high are the artifact's own."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    detail: str = "auto"

    @classmethod
    def of_part(cls, part: Mapping[str, Any], name: str) -> AskedSize:
        """Of a part of type image. Raises InvalidRequest for a field or a value that there is not."""
        if unknown := sorted(part.keys() - {"type", "detail", *_NUMBERS}):
            raise InvalidRequest(f"{name} has {unknown[0]!r:.40}; an image has min_pixels, max_pixels and detail")
        for number in _NUMBERS:
            if number in part and type(part[number]) is not int:
                raise InvalidRequest(f"{name}.{number} is {part[number]!r:.40}; it must be a whole number")
        if (detail := part.get("detail", "auto")) not in DETAILS:
            raise InvalidRequest(f"{name}.detail is {detail!r:.40}; allowed are {', '.join(DETAILS)}")
        return cls(part.get("min_pixels"), part.get("max_pixels"), detail)

    def within(self, settings: VisionSettings, name: str) -> VisionSettings:
        """`settings` with the limits of this image. Raises InvalidRequest for limits beyond theirs."""
        low, high = settings.min_pixels, settings.max_pixels
        for number in _NUMBERS:
            value = getattr(self, number)
            if value is not None and not low <= value <= high:
                raise InvalidRequest(f"{name}: {number} is {value}; allowed is {low} ... {high} for this model")
        least = low if self.min_pixels is None else self.min_pixels
        most = self._most(settings) if self.max_pixels is None else self.max_pixels
        if least > most:
            raise InvalidRequest(f"{name}: min_pixels is {least}; it must be at most max_pixels, which is {most}")
        return dataclasses.replace(settings, min_pixels=least, max_pixels=most)

    def _most(self, settings: VisionSettings) -> int:
        if self.detail != "low":
            return settings.max_pixels
        wanted = settings.frames * LOW_DETAIL_PIXELS
        return min(settings.max_pixels, max(settings.min_pixels, self.min_pixels or 0, wanted))
