"""glibc's malloc, told to keep what is freed: the arrays of a layer are as large as those of the last one.

Arrays of megabytes come straight from the kernel otherwise, and go back to it when they are freed; clearing the same
pages for every layer took a fifth of the time of a large export.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h of glibc, and its values by default
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 256 << 20, _MMAP_MAX: 0}


@contextmanager
def kept() -> Iterator[None]:
    """Until the end of the block, which gives everything back. Does nothing with another C library."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter, value in _KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _DEFAULTS.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
