"""The native decoder for every class of CPUs: built as it is for those that this machine belongs to, and with the
instructions of AVX-512 written out for the others."""

from __future__ import annotations

import hashlib
from pathlib import Path

from autoglm_export import compiler

_HEADER = Path(__file__).with_name("emulated_avx512.h")
_EMULATED = {"avx512-bf16": ("-DEMULATED_BF16",), "avx512-vnni": ()}
_RUNNABLE = {target.name: target for target in compiler.runnable_targets()}
_EMULATOR = _RUNNABLE.get("avx2")

EMULATED = [name for name in _EMULATED if name not in _RUNNABLE and _EMULATOR]
ALL_CLASSES = [*_RUNNABLE, *EMULATED]


def library(name: str) -> Path:
    """The decoder of the class `name`, one of ALL_CLASSES; compiled once for its sources."""
    if name in _RUNNABLE:
        return compiler.build(compiler.DECODER_SOURCE, _RUNNABLE[name])
    assert _EMULATOR is not None
    digest = hashlib.sha256(_HEADER.read_bytes()).hexdigest()[:16]
    options = ["-O1", "-include", str(_HEADER), f"-DHEADER_DIGEST=0x{digest}", *_EMULATED[name]]
    return compiler.build(compiler.DECODER_SOURCE, _EMULATOR, extra_options=options)
