"""An environment of its own for each peer, made by the command and kept in build/peers; every call is a process of
it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_perf.in_process.fidelity import Rows
from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.suite.suite import CannotRun

ROOT = Path("build/peers")
_SOURCES = Path(__file__).parents[2]
_INSTALL_SECONDS, _RUN_SECONDS = 1200, 300


@dataclass(frozen=True, slots=True)
class Peer:
    """`module`: of this package, `variant`: one of its kinds of weights. `requirements`: pinned; none means that our
    own environment has all it needs. `num_requests`: at 16 in flight; a slow peer's figure needs fewer."""

    module: str
    variant: str
    title: str
    requirements: tuple[str, ...] = ()
    num_requests: int = 64


@dataclass(frozen=True, slots=True)
class Measured:
    timings: list[RequestTiming]
    peak_mb: float
    note: str


def interpreter(peer: Peer, root: Path = ROOT) -> Path:
    """The environment's Python, made where it is missing or has other versions. Raises CannotRun with pip's reason."""
    if not peer.requirements:
        return Path(sys.executable)
    folder = root.resolve() / peer.module
    python, stamp, wanted = folder / "bin" / "python", folder / "requirements.txt", "\n".join(peer.requirements)
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        _call([sys.executable, "-m", "venv", str(folder)], peer, _INSTALL_SECONDS)
        _call([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], peer, _INSTALL_SECONDS)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def prepare(peer: Peer, job: Mapping[str, Any], root: Path = ROOT) -> None:
    """Environment and model file, so that no later call pays for them. Raises CannotRun."""
    _ask(peer, {**job, "action": "prepare"}, root)


def measure(peer: Peer, job: Mapping[str, Any], root: Path = ROOT) -> Measured:
    """One run in a new process. Raises CannotRun with the last line of what it said."""
    return parse(_ask(peer, {**job, "action": "measure"}, root))


def logits(peer: Peer, job: Mapping[str, Any], root: Path = ROOT) -> list[Rows]:
    files = [Path(name) for name in json.loads(_ask(peer, {**job, "action": "logits"}, root))["files"]]
    arrays = [np.load(file) for file in files]
    for file in files:
        file.unlink()
    return arrays


def parse(line: str) -> Measured:
    answer = json.loads(line)
    timings = [
        RequestTiming(started, first, finished, tokens, ()) for started, first, finished, tokens in answer["timings"]
    ]
    return Measured(timings, answer["peak_mb"], answer["note"])


def _ask(peer: Peer, job: Mapping[str, Any], root: Path) -> str:
    """The last line of what its process printed."""
    environment = {**os.environ, "PYTHONPATH": str(_SOURCES)}
    whole = {**job, "variant": peer.variant, "folder": str(root.resolve() / "models" / peer.module)}
    command = [str(interpreter(peer, root)), "-m", f"autoglm_perf.peers.{peer.module}"]
    output = _call(command, peer, _RUN_SECONDS, text=json.dumps(whole), environment=environment)
    return output.strip().splitlines()[-1]


def _call(
    command: Sequence[str], peer: Peer, timeout: float, text: str = "", environment: Mapping[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{peer.title} took over {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CannotRun(f"{peer.title} ended with {done.returncode}: {said[-1][:300]}")
    return done.stdout
