"""`autoglm serve --gateway` as a process, to be killed: its family, an answer under way, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from autoglm_cli.server.ports import check_ports
from autoglm_cli.server.ports import free_ports as free_ports_of
from autoglm_client.exceptions import LocalServerError
from autoglm_engine.triton.board.file import Board, board_id

from tests.support.server.processes import has_ended, shared_memory

PORTS = ("--gateway-port", "--http-port", "--grpc-port", "--metrics-port")
MODELS = ("tokenizer", "engine", "detokenizer", "embedder", "vision")
FAMILY = ("cli", "gateway", "tritonserver", *MODELS, "template", "watch")
LONG_ANSWER = {"model": "autoglm", "prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
SHORT_ANSWER = {"model": "autoglm", "prompt": "Hello", "max_tokens": 2}
_SECONDS = 300.0
_HOST = "127.0.0.1"


def free_ports() -> dict[str, int]:
    return dict(zip(PORTS, free_ports_of(_HOST, len(PORTS)), strict=True))


class Replica:
    """Started on `ports`, with `folder` as its temporary directory and its log; ready when it is made."""

    def __init__(self, artifact: Path, ports: dict[str, int], folder: Path) -> None:
        self._ports = ports
        self.temporary = folder / "tmp"
        self._log = folder / "serve.log"
        self.temporary.mkdir(exist_ok=True)
        named = [word for option, port in ports.items() for word in (option, str(port))]
        command = [sys.executable, "-m", "autoglm_cli", "serve", "--gateway", "--artifact", str(artifact)]
        began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [*command, *named],
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.temporary), "AUTOGLM_CACHE_MODE": "off"},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
            self.start_seconds = time.monotonic() - began
            self.family = self._members()
            server = self.family["tritonserver"].pid
            self._shared = {
                path for path in shared_memory(*self.family.values()) if not _is_board_of_another(path, server)
            }
        except BaseException:
            self.kill()
            raise

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self._ports['--gateway-port']}"

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def answers(self) -> bool:
        try:
            return httpx.post(f"{self.url}/v1/completions", json=SHORT_ANSWER, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def left(self) -> list[str]:
        """What there still is of it, in words."""
        processes = [f"process {name}" for name, process in self.family.items() if not has_ended(process)]
        shared = [str(path) for path in self._shared if path.exists()]
        return processes + shared + [str(path) for path in self.temporary.iterdir()] + self._taken_ports()

    def kill(self) -> None:
        """Whatever there is of it; a test that failed leaves nothing behind."""
        for process in getattr(self, "family", {"cli": self._process}).values():
            if not has_ended(process):
                process.kill()
        self._process.wait()

    def _taken_ports(self) -> list[str]:
        try:
            check_ports({option: (_HOST, port) for option, port in self._ports.items()})
        except LocalServerError as error:
            return [str(error)]
        return []

    def _wait_until_ready(self) -> None:
        wait_until(lambda: "ready; Ctrl-C" in self.said or self.has_ended)
        if self.has_ended or not self.answers():
            raise AssertionError(f"it did not start: {self.said}")

    def _members(self) -> dict[str, psutil.Process]:
        named = {_name(process): process for process in self._process.children(recursive=True)}
        assert sorted([*named, "cli"]) == sorted(FAMILY), named
        return {"cli": self._process, **named}


def _is_board_of_another(path: Path, server: int) -> bool:
    """Models that look for the boards of their own server open those of others, too, and close them again."""
    if board_id(path.name) is None:
        return False
    board = Board.open(path)
    return board is None or board.server.pid != server


def _name(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if model := re.search(r"/([\w.-]+)/1/model\.py", words):
        return model[1]
    known = {
        "autoglm_cli gateway": "gateway",
        "bin/tritonserver ": "tritonserver",
        "template_worker": "template",
        "server_cleanup": "watch",
    }
    return next((name for part, name in known.items() if part in words), words)


class LongStream:
    """A long answer that is being read by a thread; made when it has begun. `outcome`: how it ended, None before."""

    def __init__(self, replica: Replica) -> None:
        self.num_events = 0
        self.outcome: str | None = None
        self._url = f"{replica.url}/v1/completions"
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.num_events > 3 or self.outcome is not None)
        assert self.outcome is None, self.outcome

    def _read(self) -> None:
        last = ""
        try:
            with httpx.stream("POST", self._url, json=LONG_ANSWER, timeout=_SECONDS) as response:
                for line in response.iter_lines():
                    last = line if line.startswith("data: {") else last
                    self.num_events += 1
            error = json.loads(last.removeprefix("data: ")).get("error")
            self.outcome = f"error: {error['message']}" if error else "complete"
        except httpx.TransportError as error:
            self.outcome = f"cut: {error}"


def wait_until(condition: Callable[[], bool], seconds: float = _SECONDS) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came"
        time.sleep(0.02)
    return time.monotonic() - began
