"""What a local server leaves is removed when its owner is gone; what others have is left alone. The real server is
killed in test_killed_server.py."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.server_cleanup import SHARED_MEMORY, ServerCleanup
from autoglm_cli.server.server_folder import Process, ServerFolder, sweep
from autoglm_engine.triton.board.acks import AckBoard
from autoglm_engine.triton.board.server_identity import ServerIdentity

from tests.support.server.processes import wait_for_end

NO_PROCESS = 2**22 + 1  # higher than any


class Left:
    """What a server may leave, made here: `kill` ends what a failed test leaves behind."""

    def __init__(self, folder: Path, regions: str) -> None:
        self.cleanup = ServerCleanup(folder, regions)
        self.region = SHARED_MEMORY / f"{regions}{secrets.token_hex(4)}"
        self.region.write_bytes(b"x")
        self.processes: list[psutil.Popen] = []

    def start(self, *words: str, program: str = "/bin/sleep") -> psutil.Popen:
        self.processes.append(psutil.Popen(words, executable=program))
        return self.processes[-1]

    def start_stub(self) -> psutil.Popen:
        return self.start(f"{self.cleanup.folder}/backends/python/triton_python_backend_stub", "600")

    def start_server(self) -> psutil.Popen:
        option = f"--backend-directory={self.cleanup.folder}/backends"
        return self.start("tritonserver", "-c", "sleep 600; true", option, program="/bin/sh")

    def kill(self) -> None:
        self.region.unlink(missing_ok=True)
        for process in self.processes:
            for member in [*process.children(recursive=True), process] if process.is_running() else []:
                member.kill()
            process.wait()


MakeLeft = Callable[..., Left]


@pytest.fixture
def left() -> Iterator[MakeLeft]:
    made: list[Left] = []

    def make(folder: Path, owner: object = None) -> Left:
        regions = f"autoglm-{secrets.token_hex(8)}-"
        folder.mkdir(exist_ok=True)
        if owner is not None:
            (folder / "owner").write_text(json.dumps({**owner, "regions": regions}))  # type: ignore[dict-item]
        made.append(Left(folder, regions))
        return made[-1]

    yield make
    for each in made:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def owner_of(pid: int) -> dict[str, int]:
    process = Process.of(pid)
    return {"pid": pid, "started": process.started if process else 1}


def test_processes_regions_and_folder_go(left: MakeLeft, tmp_path: Path) -> None:
    mine, other = left(tmp_path / "autoglm-server-a"), left(tmp_path / "autoglm-server-ab")
    server, stub, stopped = mine.start_server(), mine.start_stub(), mine.start_stub()
    stopped.send_signal(signal.SIGSTOP)
    reader = mine.start(f"{mine.cleanup.folder}/server.log", "600")  # somebody who looks at its log, say
    others = other.start_stub()
    mine.cleanup.remove()
    assert {server.wait(), stub.wait(), stopped.wait()} == {-signal.SIGKILL}
    assert not mine.region.exists() and not mine.cleanup.folder.exists()
    assert reader.is_running() and others.is_running() and other.region.exists() and other.cleanup.folder.exists()


def test_the_boards_of_the_server_go_and_nobody_elses(tmp_path: Path) -> None:
    here = Path("/proc/self/ns/pid").stat().st_ino

    def board(pid: int, started: int = 5, namespace: int = here) -> Path:
        path = SHARED_MEMORY / f"autoglm-acks-{secrets.token_hex(8)}"
        path.write_bytes(struct.pack("<8Q", 1, 0, 0, pid, started, namespace, 0, 0))
        return path

    mine = [board(NO_PROCESS), board(NO_PROCESS)]
    others = [board(NO_PROCESS + 1), board(NO_PROCESS, started=6), board(NO_PROCESS, namespace=here + 1)]
    others.append(SHARED_MEMORY / f"autoglm-acks-{secrets.token_hex(8)}")
    others[-1].touch()
    try:
        with mine[0].open("rb") as dying:  # its engine was killed, and has not let go of it yet
            fcntl.flock(dying, fcntl.LOCK_EX)
            ServerCleanup(tmp_path / "none", "autoglm-none-", NO_PROCESS, 5).remove()
        assert [path.exists() for path in mine + others] == [False] * 2 + [True] * 4
    finally:
        for path in mine + others:
            path.unlink(missing_ok=True)


def test_an_engines_board_says_whose_it_is(tmp_path: Path) -> None:
    """The layout that `server_cleanup` reads."""
    server = Process.of(os.getpid())
    assert server is not None
    with AckBoard(1, server=ServerIdentity.of(server.pid)) as board:
        ServerCleanup(tmp_path / "none", "autoglm-none-", server.pid, server.started).remove()
        assert not (SHARED_MEMORY / board.name).exists()


def test_the_next_start_sweeps_what_dead_owners_left(left: MakeLeft, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = left(tmp_path / "autoglm-server-dead", owner_of(ended.pid))
    stub = dead.start_stub()
    again = left(tmp_path / "autoglm-server-again", {"pid": os.getpid(), "started": 1})  # its number is another's now
    assert sweep(tmp_path) == [again.cleanup.folder, dead.cleanup.folder]
    assert stub.wait() == -signal.SIGKILL and not dead.region.exists() and not again.region.exists()
    assert not list(tmp_path.iterdir())


def test_a_zombie_is_no_owner(left: MakeLeft, tmp_path: Path) -> None:
    ended = subprocess.Popen(["sleep", "600"])
    owner = owner_of(ended.pid)
    left(tmp_path / "autoglm-server-dead", owner)
    assert sweep(tmp_path) == []
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert sweep(tmp_path) == [tmp_path / "autoglm-server-dead"]
    ended.wait()


def test_the_folder_of_a_living_owner_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = ServerFolder(f"autoglm-{secrets.token_hex(8)}-")
    assert json.loads((folder.path / "owner").read_text())["pid"] == os.getpid()
    assert (folder.path.stat().st_mode & 0o777, (folder.path / "owner").stat().st_mode & 0o777) == (0o700, 0o600)
    assert sweep() == []
    # Of a container that counts its processes for itself, nobody here has the number. The lock tells.
    said = json.loads((folder.path / "owner").read_text()) | {"pid": NO_PROCESS}
    (folder.path / "owner").write_text(json.dumps(said))
    assert sweep() == [] and folder.path.exists()
    folder.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "said", [b"", b"[]", b"{}", b"\xff", b'{"pid": "x", "started": 1, "regions": ""}', b'{"pid": 1, "started": 1}']
)
def test_what_does_not_say_who_made_it_is_left_alone(said: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "autoglm-server-x"
    folder.mkdir()
    assert sweep(tmp_path) == []
    (folder / "owner").write_bytes(said)
    assert sweep(tmp_path) == [] and folder.exists()


def test_regions_are_only_ever_a_servers(tmp_path: Path) -> None:
    folder = tmp_path / "autoglm-server-x"
    folder.mkdir()
    kept = SHARED_MEMORY / f"autoglm-test-{secrets.token_hex(4)}"
    kept.touch()
    try:
        for regions in ("", "autoglm-", "*", "../"):
            (folder / "owner").write_text(json.dumps({"pid": NO_PROCESS, "started": 1, "regions": regions}))
            assert sweep(tmp_path) == [] and folder.exists() and kept.exists()
    finally:
        kept.unlink()


def test_links_are_not_followed(left: MakeLeft, tmp_path: Path) -> None:
    elsewhere = left(tmp_path / "kept", {"pid": NO_PROCESS, "started": 1})
    (tmp_path / "autoglm-server-link").symlink_to(elsewhere.cleanup.folder)
    folder = tmp_path / "autoglm-server-owner"
    folder.mkdir()
    (folder / "owner").symlink_to(elsewhere.cleanup.folder / "owner")
    assert sweep(tmp_path) == []
    assert elsewhere.region.exists() and elsewhere.cleanup.folder.exists() and folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of other users")
def test_another_users_are_left_alone(left: MakeLeft, tmp_path: Path) -> None:
    theirs = left(tmp_path / "autoglm-server-theirs", {"pid": NO_PROCESS, "started": 1})
    os.chown(theirs.cleanup.folder, 65534, 65534)
    assert sweep(tmp_path) == [] and theirs.region.exists()
    mine = left(tmp_path / "autoglm-server-mine", {"pid": NO_PROCESS, "started": 1})
    os.chown(mine.region, 65534, 65534)
    process = psutil.Popen(
        [f"{mine.cleanup.folder}/backends/python/stub", "600"], executable="/bin/sleep", user=65534, group=65534
    )
    try:
        assert sweep(tmp_path) == [mine.cleanup.folder]
        assert process.poll() is None and mine.region.exists()
    finally:
        process.kill()
        process.wait()


# A process that owns a folder and has it watched, as a server's process does.
_OWNER = """
import sys, time
from autoglm_cli.server.server_folder import ServerFolder
from autoglm_cli.server.server_cleanup import Watch
folder = ServerFolder(sys.argv[1])
watch = Watch(folder.cleanup())
print(folder.path, watch.pid, flush=True)
for _ in sys.stdin:
    print(watch.pid, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_watch_killed", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_whatever_ends_the_owner_everything_goes(tmp_path: Path, number: signal.Signals, is_watch_killed: bool) -> None:
    regions = f"autoglm-{secrets.token_hex(8)}-"
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, regions],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert owner.stdin is not None and owner.stdout is not None
    folder, watch = owner.stdout.readline().split()
    mine = Left(Path(folder), regions)
    stub = mine.start_stub()
    stub.send_signal(signal.SIGSTOP)
    watching = psutil.Process(int(watch))
    if is_watch_killed:
        watching.kill()
        wait_for_end(watching)
        watching = _next_watch(owner, watching.pid)
    owner.send_signal(number)
    if number == signal.SIGSTOP:
        with pytest.raises(psutil.TimeoutExpired):
            stub.wait(1)
        owner.kill()
    assert stub.wait() == -signal.SIGKILL
    owner.communicate()
    wait_for_end(watching)
    assert not mine.region.exists() and not list(tmp_path.iterdir())


def _next_watch(owner: subprocess.Popen[str], killed: int) -> psutil.Process:
    """The one that the owner starts in its place."""
    assert owner.stdin is not None and owner.stdout is not None
    give_up_at = time.monotonic() + 60.0
    while True:
        print(file=owner.stdin, flush=True)
        if (pid := int(owner.stdout.readline())) != killed:
            return psutil.Process(pid)
        assert time.monotonic() < give_up_at, "no other one was started"
        time.sleep(0.01)
