"""What a person sees of a step of the Makefile: progress, no noise, and the log's name where it failed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export.artifacts import ROOT

STEP = [sys.executable, str(ROOT / "deploy" / "install" / "step.py")]
NOISY = (
    "echo 'WARNING: Location a is ignored' >&2; echo Collecting numpy; echo 'WARNING: b' >&2; echo '[notice] new pip'"
)


def step(log: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*STEP, "--log", str(log), *options, "installing numpy", "--", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_user_sees_what_happens_and_the_log_has_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "new" / "install.log"
    done = step(log, NOISY, "--about", "120")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "installing numpy (about 2 min) ...\n")
    assert "WARNING: Location a" in log.read_text() and "Collecting numpy" in log.read_text()


def test_a_longer_step_says_what_it_took(tmp_path: Path) -> None:
    assert re.fullmatch(r"installing numpy \.\.\.\n  done in \d+ s\n", step(tmp_path / "log", "sleep 2.1").stderr)


def test_a_failure_shows_its_reason_without_the_noise_and_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert step(log, "echo of an earlier step").returncode == 0
    done = step(log, f"{NOISY}; echo 'ERROR: No matching distribution' >&2; exit 3")
    assert done.returncode == 3
    assert "ERROR: No matching distribution" in done.stderr and str(log) in done.stderr
    assert "WARNING" not in done.stderr and "earlier" not in done.stderr
    assert "earlier" in log.read_text()


def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [*STEP, "--log", str(tmp_path / "log"), "x", "--", str(tmp_path / "none")], capture_output=True, check=False
    )
    assert done.returncode == 127 and b"No such file" in done.stderr


def test_on_a_terminal_one_line_moves(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*STEP, "--log", str(tmp_path / "log"), "installing", "--", "sh", "-c", f"{NOISY}; sleep 0.6"]
    process = subprocess.Popen(command, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while part := _read(ours):
        shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"Collecting numpy" in shown and b"WARNING" not in shown
    assert shown.count(b"\n") == 1, "a line that is written over, and one end"
    assert re.search(rb"\r\x1b\[Kinstalling: done in \d+ s\r\n$", shown)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("stamp", ["runtime", "test", "embedder"])
def test_every_install_of_the_makefile_is_such_a_step(stamp: str) -> None:
    """pip and apt write to the log alone."""
    rules = (ROOT / "Makefile").read_text().split("\n\n")
    (rule,) = [rule for rule in rules if rule.startswith(f"$(VENV)/{stamp}.stamp:")]
    lines = [line.lstrip("\t@") for line in rule.splitlines() if line.startswith("\t")]
    installing = [line for line in lines if "$(PIP)" in line or "venv $(VENV)" in line]
    assert installing and all("$(STEP)" in line for line in installing)
