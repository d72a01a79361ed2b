"""The stack that tritonserver starts with: large, but not where stacks count that nobody uses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from autoglm_cli.server.server_log import startup_error
from autoglm_cli.server.stack_limit import STACK_BYTES, with_stack

# Fewer threads than tritonserver has, and more than 16 GiB hold with a stack of 1 GiB each.
_THREADS = """
import threading
end = threading.Event()
threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(40)]
for thread in threads: thread.start()
end.set()
"""
_SAYS_IT = "import resource; print(resource.getrlimit(resource.RLIMIT_STACK)[0])"


def run(program: str, before: str = "true") -> subprocess.CompletedProcess[str]:
    """What becomes of a Python program that starts so, after a line of the shell."""
    command = with_stack([sys.executable, "-ISc", program])
    shell = ["sh", "-c", f'{before} && exec "$@"', "sh", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


def test_it_is_as_large_as_bodies_want_it() -> None:
    assert run(_SAYS_IT).stdout == f"{STACK_BYTES}\n"


@pytest.mark.parametrize("limit", ["v", "d"])
def test_threads_start_under_a_limit_of_address_space(limit: str) -> None:
    done = run(_THREADS, f"ulimit -{limit} {16 << 20}")
    assert done.returncode == 0, done.stderr


def test_a_program_that_cannot_be_started_is_named() -> None:
    done = subprocess.run(with_stack([__file__]), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert startup_error(done.stderr) == f"{__file__} cannot be started: Permission denied"
