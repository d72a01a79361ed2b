"""Keys that a program takes as arguments are not for everybody who lists processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_cli.server.hidden_arguments import hide_arguments
from autoglm_cli.server.local_server import LocalServer

SAYS_THEM = "import sys; print('ready', flush=True); sys.stdin.readline(); print(*sys.argv[1:])"


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def test_a_secret_is_gone_from_the_command_line_and_not_from_the_program() -> None:
    command = [sys.executable, "-c", SAYS_THEM, "--key=s3cret", "--other=s3cret-too", "plain"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert hide_arguments(process.pid, ["s3cret", "nowhere"])
        assert command_line(process.pid)[3:] == ["--key=******", "--other=******-too", "plain"]
        assert process.communicate("\n")[0] == "--key=s3cret --other=s3cret-too plain\n"


def test_a_process_that_is_gone_or_closed_is_no_error(tmp_path: Path) -> None:
    assert not hide_arguments(2**22 + 1, ["x"])
    assert not hide_arguments(1, ["x"], tmp_path)


def test_programs_that_become_the_server_keep_the_keys_to_hand_on(tmp_path: Path) -> None:
    """Whatever is in the log: the system's loader may warn there of each of them."""
    log = tmp_path / "log"
    server = LocalServer(tmp_path, log_file=log)
    with subprocess.Popen([sys.executable, "-c", "input()", server.control_key], stdin=subprocess.PIPE) as before:
        server._process = before
        log.write_text("ERROR: ld.so: object from LD_PRELOAD cannot be preloaded: ignored.")
        server._hide_keys()
        assert command_line(before.pid)[-1] == server.control_key
        before.communicate(b"\n")


@pytest.mark.server
def test_the_keys_of_a_server_are_not_in_its_command_line(server: LocalServer) -> None:
    assert server.pid is not None
    said = "\0".join(command_line(server.pid))
    assert "--grpc-restricted-protocol=" in said
    assert server.control_key not in said and server.shared_memory_key not in said
