"""The stack that tritonserver's threads get: how much of it its HTTP ports use is said by the body that they are
sent."""

from __future__ import annotations

import sys

# 8 MiB end the server with a body of a few megabytes. A thread's stack is as large as the limit says; "unlimited" would
# mean 2 MiB. What is not used takes no memory, but it counts where the system promises none that it does not have
# (vm.overcommit_memory 2), and in limits of address space (ulimit -v, -d): there the limit stays.
STACK_BYTES = 1 << 30
_RAISE = f"""
import os, resource, sys
before, most = resource.getrlimit(resource.RLIMIT_STACK)
stack = {STACK_BYTES} if most == resource.RLIM_INFINITY else min({STACK_BYTES}, most)
with open("/proc/sys/vm/overcommit_memory") as promises:
    counts = promises.read().strip() == "2"
limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
counts |= any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)
resource.setrlimit(resource.RLIMIT_STACK, (before if counts else stack, most))
try:
    os.execv(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"error: {{sys.argv[1]}} cannot be started: {{error.strerror}}")
"""


def with_stack(command: list[str]) -> list[str]:
    """Becomes `command`, in the same process, with the stack that it needs."""
    return [sys.executable, "-ISc", _RAISE, *command]
