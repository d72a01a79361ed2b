"""Processes that are somebody else's children."""

from __future__ import annotations

import time

import psutil


def has_ended(process: psutil.Process) -> bool:
    """Reaped or not: that is not its own affair."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for_end(*processes: psutil.Process) -> None:
    """The suite's own limit ends what hangs."""
    while not all(map(has_ended, processes)):
        time.sleep(0.01)
