"""The first ten minutes: what a newcomer does wrong, the one sentence that it is answered with, and where to go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_cli import app
from autoglm_cli.commands.demo import next_step
from autoglm_cli.errors import sentence_of
from autoglm_client.exceptions import InvalidRequestError
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["expot"], "No such command 'expot'. Did you mean 'export'? See autoglm --help"),
        (
            ["generate", "x", "-n", "many"],
            "--max-tokens' / '-n': it must be a whole number; see autoglm generate --help",
        ),
        (["generate", "x", "-t", "hot"], "--temperature' / '-t': it must be a number; see autoglm generate --help"),
        (
            ["generate", "x", "--time-limit", "0"],
            "--time-limit': it must be at least 0.001; see autoglm generate --help",
        ),
        (
            ["generate", "x", "--time-limit", "nan"],
            "--time-limit': it must be at least 0.001; see autoglm generate --help",
        ),
        (["batch", "x", "-c", "0"], "--concurrency' / '-c': it must be at least 1; see autoglm batch --help"),
        (["bench", "--requests", "65"], "--requests': it must be at most 64; see autoglm bench --help"),
        (["serve", "--grpc-port", "99999"], "--grpc-port': it must be between 0 and 65535; see autoglm serve --help"),
        (
            ["export"],
            "Missing argument 'checkpoint', such as smollm2; only --check needs none; see autoglm export --help",
        ),
    ],
)
def test_a_command_line_that_is_wrong(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="autoglm")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.endswith(f"{words}\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device"),
        (OSError("odd"), "OSError: odd (AUTOGLM_DEBUG=1 shows where)"),
        (
            InvalidRequestError("Request for unknown model: 'phone' is not found"),
            "the server has no model 'phone'; --model names one that it has",
        ),
    ],
)
def test_errors_of_the_machine_and_the_server(error: Exception, sentence: str) -> None:
    assert sentence_of(error) == sentence


def test_the_demo_says_how_to_go_on() -> None:
    assert next_step(None) == "next: `autoglm serve`, and in another terminal `autoglm chat`"
    assert "`autoglm serve --artifact 'my models/demo'`" in next_step(Path("my models/demo"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_before_a_command_begins() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "autoglm_cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


SPILLS = """
import sys
from autoglm_cli.app import app, main

app.command("spill")(lambda: print("x", flush=True))
sys.argv = ["autoglm", "spill"]
main()
"""


def test_who_reads_no_further_is_not_told() -> None:
    """The exit's flush of stdout does not complain either."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", SPILLS], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
