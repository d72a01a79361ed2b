"""Where TensorRT keeps what it timed while it built."""

from __future__ import annotations

from pathlib import Path


def timing_cache(module: str, folder: Path) -> Path | None:
    """Beside the artifact, so that the next build on this machine times less. TensorRT-RTX times nothing at build."""
    return folder.parent / f"{module}.timing-cache" if module == "tensorrt" else None
