"""What an image may be, before any of it is decoded."""

from __future__ import annotations

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_BYTES = 20 << 20
MAX_IMAGE_PIXELS = 33_000_000  # as the header says; decoded, three bytes each
