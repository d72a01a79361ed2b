"""An environment of its own for each peer, made by the command and kept in build/peers; measured in a process of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_perf.measures import RequestTiming
from autoglm_perf.suite import CannotRun

ROOT = Path("build/peers")
_SOURCES = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Peer:
    """`module`: of this package. `requirements`: pinned; none means that our own environment has all it needs."""

    module: str
    title: str
    requirements: tuple[str, ...] = ()


def interpreter(peer: Peer, root: Path = ROOT) -> Path:
    """The environment's Python, made where it is missing or has other versions. Raises CannotRun with pip's reason."""
    if not peer.requirements:
        return Path(sys.executable)
    folder = root.resolve() / peer.module
    python, stamp, wanted = folder / "bin" / "python", folder / "requirements.txt", "\n".join(peer.requirements)
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        _call([sys.executable, "-m", "venv", str(folder)], peer)
        _call([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], peer)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def measure(peer: Peer, job: Mapping[str, Any], root: Path = ROOT) -> list[RequestTiming]:
    """One run in a new process. Raises CannotRun with the last line of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(_SOURCES)}
    whole = {**job, "folder": str(root.resolve() / "models" / peer.module)}
    command = [str(interpreter(peer, root)), "-m", f"autoglm_perf.peers.{peer.module}"]
    output = _call(command, peer, text=json.dumps(whole), environment=environment)
    return parse(output)


def parse(output: str) -> list[RequestTiming]:
    rows = json.loads(output.strip().splitlines()[-1])
    return [RequestTiming(started, first, finished, tokens, ()) for started, first, finished, tokens in rows]


def _call(command: list[str], peer: Peer, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, input=text, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CannotRun(f"{peer.title} ended with {done.returncode}: {said[-1][:300]}")
    return done.stdout
