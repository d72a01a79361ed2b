"""Which version of this software runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def software_version() -> str:
    try:
        return version("autoglm-triton")
    except PackageNotFoundError:
        return "unknown"
