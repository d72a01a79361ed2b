"""asyncio's time limits. Python has them since 3.11; for 3.10 the package async-timeout has the same."""

from __future__ import annotations

import asyncio
import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout, timeout_at
else:
    from async_timeout import timeout, timeout_at

__all__ = ["LimitPassed", "timeout", "timeout_at"]

LimitPassed = asyncio.TimeoutError  # the built-in TimeoutError since 3.11, a class of its own before
