"""Run as a script, becomes another program, whose shared memory is its user's alone from the first moment on:

    python -IS private_memory.py PROGRAM ARGUMENT ...

Triton's Python backend (through Boost) gives each region that it makes the mode 0644 by a call of its own (fchmod),
whatever the umask. So here the umask is 0077, and that very call does nothing and succeeds: a filter of system calls
(seccomp), which the program's children have, too. Where the system takes no filter, the models still close their
regions, but only while they load (`autoglm_engine.triton.shared_regions`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_OPEN_TO_ALL = 0o644
# machine -> (its number in the filter's data, of the call fchmod, of the call seccomp); linux/audit.h, asm/unistd.h
_NUMBERS = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of linux/bpf_common.h
_ALLOW, _DO_NOTHING = 0x7FFF0000, 0x00050000  # linux/seccomp.h; the second is "fails with error 0"
_NO_NEW_PRIVILEGES, _SET_FILTER, _KEEP_SPECULATION = 38, 1, 4


def wrapped(command: Sequence[str]) -> list[str]:
    """The command that becomes `command`."""
    return [sys.executable, "-IS", str(Path(__file__).resolve()), *command]


def ignore_opening() -> bool:
    """fchmod(anything, 0644) does nothing from here on. Whether that could be had."""
    if (numbers := _NUMBERS.get(platform.machine())) is None:
        return False
    machine, fchmod, seccomp = numbers
    # Offsets in struct seccomp_data: the call 0, the machine 4, the second argument 24. A jump counts what it leaves
    # out.
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 5, machine),
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 3, fchmod),
        (_LOAD, 0, 0, 24),
        (_EQUAL, 0, 1, _OPEN_TO_ALL),
        (_RETURN, 0, 0, _DO_NOTHING),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(seccomp, _SET_FILTER, _KEEP_SPECULATION, head) == 0)


def main() -> None:
    os.umask(0o077)
    ignore_opening()
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
