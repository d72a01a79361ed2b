"""What this machine's processor can do, from /proc/cpuinfo: psutil does not know the flags."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_features() -> frozenset[str]:
    """The processor's flags, by the kernel's names; none where the kernel does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def multiplies_int8_exactly() -> bool:
    """Whether unsigned-by-signed int8 products of ONNX Runtime need no slower kernels to be right on this processor.

    Without VNNI, x86 adds pairs of products in 16 bits, where they saturate; other architectures do not.
    """
    return platform.machine() not in ("x86_64", "AMD64") or not cpu_features().isdisjoint({"avx512_vnni", "avx_vnni"})
