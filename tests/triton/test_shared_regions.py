"""Memory that prompts pass through is its owner's alone: what a model closes at load, and what another user finds."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_cli.server.children import start_logged
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.private_memory import wrapped
from autoglm_cli.server.server_probe import stub_processes
from autoglm_engine.triton.board.finder import SHARED_MEMORY
from autoglm_engine.triton.shared_regions import close_to_others, largest_bytes, mapped_files

SELF = Path("/proc/self/maps")
# Another user: opens each file given, and tells which could be read.
READER = """
import json, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
read = []
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            file.read(1)
        read.append(path)
    except PermissionError:
        pass
print(json.dumps(read))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def readable_to_nobody(*paths: Path) -> list[str]:
    command = [sys.executable, "-ISc", READER, *map(str, paths)]
    found: list[str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def mapped(path: Path, mode: int) -> mmap.mmap:
    path.write_bytes(b"x" * 4096)
    path.chmod(mode)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 4096)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_largest_region_of_this_process_is_known(tmp_path: Path) -> None:
    assert largest_bytes(tmp_path) == 0
    region = mapped(tmp_path / "region", 0o600)
    (tmp_path / "not mapped").write_bytes(bytes(2 * len(region)))
    assert largest_bytes(tmp_path) == len(region)
    region.close()


def test_what_this_process_maps_becomes_its_owners_alone(tmp_path: Path) -> None:
    region, closed, other = tmp_path / "a region", tmp_path / "closed", tmp_path / "not mapped"
    kept = [mapped(region, 0o644), mapped(closed, 0o400)]
    other.touch(0o644)
    elsewhere = tmp_path / "folder" / "deeper"
    elsewhere.parent.mkdir()
    kept.append(mapped(elsewhere, 0o644))
    close_to_others(tmp_path)
    assert [mode_of(path) for path in (region, closed, other, elsewhere)] == [0o600, 0o400, 0o644, 0o644]
    assert len(kept) == 3


def test_a_file_that_took_a_regions_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "region"
    kept = mapped(path, 0o644)
    assert mapped_files(tmp_path, SELF) == {path}
    path.unlink()
    path.touch(0o644)
    assert mapped_files(tmp_path, SELF) == set()
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert mapped_files(tmp_path, SELF) == set()
    close_to_others(tmp_path)
    kept.close()


OPENS_A_REGION = """
import os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
modes = [os.fstat(file).st_mode & 0o777]
for mode in (0o644, 0o640, 0o600):
    os.fchmod(file, mode)
    modes.append(os.fstat(file).st_mode & 0o777)
print(*map(oct, modes))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows these machines")
def test_a_region_is_never_open_to_others(tmp_path: Path) -> None:
    """As Boost makes it. Other modes are set as ever."""
    command = wrapped([sys.executable, "-ISc", OPENS_A_REGION, str(tmp_path / "region")])
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == "0o600 0o600 0o640 0o600\n"


@needs_root
def test_the_other_user_of_these_tests_can_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What follows means nothing unless an open file is read."""
    opened, closed = Path("/dev/shm") / f"test-{os.getpid()}-open", Path("/dev/shm") / f"test-{os.getpid()}-closed"
    try:
        for path, mode in ((opened, 0o644), (closed, 0o600)):
            path.touch()
            path.chmod(mode)
        assert readable_to_nobody(opened, closed) == [str(opened)]
    finally:
        opened.unlink(missing_ok=True)
        closed.unlink(missing_ok=True)


@needs_root
@pytest.mark.server
def test_another_user_reads_nothing_of_a_server(server: LocalServer) -> None:
    assert server.pid is not None
    stubs = stub_processes(server.pid)
    regions = set().union(*(mapped_files(SHARED_MEMORY, Path(f"/proc/{pid}/maps")) for pid in (server.pid, *stubs)))
    assert len(stubs) == 5 and len(regions) >= 6, "a region a model, and the board"
    assert readable_to_nobody(*regions) == []
    assert {path: oct(mode_of(path)) for path in regions if mode_of(path) & 0o077} == {}
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "Umask:\t0077\n" in status and "Seccomp:\t2\n" in status


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_new_log_is_its_owners_alone_and_an_old_one_stays(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        old, new = tmp_path / "old.log", tmp_path / "new.log"
        old.touch()
        old.chmod(0o640)
        for log in (old, new):
            start_logged([sys.executable, "-c", "print(1)"], dict(os.environ), log).wait()
            assert log.read_text() == "1\n"
    finally:
        os.umask(before)
    assert (mode_of(old), mode_of(new)) == (0o640, 0o600)
