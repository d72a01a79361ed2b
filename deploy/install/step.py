"""Runs one step of an installation for a person: one line that moves while it runs, its output in a log that a failure
names.

    python3 deploy/install/step.py --log install.log --about 60 "installing the server" -- pip install tritonclient

Where stderr is no terminal, it is a line at the beginning and one at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_TICK_SECONDS = 0.25
_SHORT_SECONDS = 2.0  # a step that ends within it needs no second line
_NUM_LINES = 12  # of the log, shown where a step failed
_NOISE = re.compile(r"\s*$|WARNING|DEPRECATION|\[notice\]")
_TAIL_BYTES = 64 << 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="the command's output is added to this file")
    parser.add_argument("--about", type=float, metavar="SECONDS", help="what it takes on an ordinary machine")
    parser.add_argument("what", help="said to the user")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    expected = f" (about {duration(given.about)})" if given.about else ""
    given.log.parent.mkdir(parents=True, exist_ok=True)
    return run(f"{given.what}{expected}", given.command, given.log)


def run(what: str, command: Sequence[str], log: Path) -> int:
    """The command's exit code; 127 where it cannot be started."""
    line, began = Line(what), time.monotonic()
    try:
        with log.open("ab") as output:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
            since = output.tell()
            process = subprocess.Popen(command, stdout=output, stderr=output)
    except OSError as error:
        line.end(f"cannot run {command[0]}: {error.strerror}")
        return 127
    try:
        while process.poll() is None:
            line.show(time.monotonic() - began, last_line(log, since))
            time.sleep(_TICK_SECONDS)
    except KeyboardInterrupt:  # of the whole group: the command has it, too
        process.wait()
        line.end("interrupted")
        return 130
    seconds = time.monotonic() - began
    if process.returncode:
        line.end(f"failed after {duration(seconds)}")
        _tell_failure(log, since)
    elif seconds > _SHORT_SECONDS or line.is_live:
        line.end(f"done in {duration(seconds)}")
    return process.returncode


class Line:
    """What the user sees of one step."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if not self.is_live:
            self._write(f"{what} ...\n")

    def show(self, seconds: float, doing: str) -> None:
        if self.is_live:
            text = f"{self.what} ... {duration(seconds)}  {doing}"
            self._write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")

    def end(self, how: str) -> None:
        self._write(f"\r\x1b[K{self.what}: {how}\n" if self.is_live else f"  {how}\n")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def last_line(log: Path, since: int) -> str:
    """What the command does now, without the warnings that package managers write beside it."""
    lines = [line for line in _lines(log, since) if not _NOISE.match(line)]
    return "".join(char for char in lines[-1].strip() if char.isprintable()) if lines else ""


def _lines(log: Path, since: int) -> list[str]:
    with log.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(since, end - _TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()


def _tell_failure(log: Path, since: int) -> None:
    lines = [line for line in _lines(log, since) if not _NOISE.match(line)]
    sys.stderr.write("".join(f"  {line}\n" for line in lines[-_NUM_LINES:]))
    sys.stderr.write(f"the whole log is in {log}\n")


if __name__ == "__main__":
    sys.exit(main())
