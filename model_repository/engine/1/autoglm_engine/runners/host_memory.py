"""Whether an artifact's slots fit into the memory that this process may still take.

The pool of keys and values is reserved as a whole and taken as positions are first used: without this question a server
starts, and is killed when its slots fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest

_FLOAT = 4
_ROOT = Path("/")
_UNLIMITED = 1 << 60  # bytes; version 1 of cgroups says so by a number
_MACHINE, _CGROUP = "on this machine", "within the limit of its container (cgroup)"


@dataclass(frozen=True, slots=True)
class Room:
    num_bytes: int
    where: str


def check_memory(manifest: Manifest, pool_bytes: int, *, room: Room | None = None) -> None:
    """`pool_bytes`: the keys and values of all slots. `room`: None for what there is now.

    Raises ArtifactError where pool, weights and buffers need more, and says what does fit.
    """
    if (room := room or memory_room()) is None:
        return
    weights, buffers = sum(record.bytes for record in manifest.files.values()), _buffer_bytes(manifest)
    if pool_bytes + weights + buffers <= room.num_bytes:
        return
    fitting = (room.num_bytes - weights - buffers) * manifest.num_slots // pool_bytes
    advice = f"set max_batch_size to at most {fitting}, or " if fitting >= 1 else ""
    raise ArtifactError(
        f"there is not enough memory for {manifest.num_slots} slots of {manifest.max_length} tokens: their keys and "
        f"values take {_told(pool_bytes)}, beside {_told(weights)} of weights and {_told(buffers)} of buffers, and "
        f"{_told(room.num_bytes)} are free {room.where}; {advice}export it with fewer or shorter slots"
    )


def memory_room(root: Path = _ROOT) -> Room | None:
    """The tightest of what bounds this process; None where the system does not say. `root`: where /proc and /sys
    are."""
    rooms = [*_machine(root), *_cgroups(root)]
    return min(rooms, key=lambda room: room.num_bytes, default=None)


def _buffer_bytes(manifest: Manifest) -> int:
    """The largest: a row of logits a slot, and sines and cosines of all positions."""
    return _FLOAT * (manifest.num_slots * manifest.vocab_size + manifest.max_length * manifest.cache.head_size)


def _machine(root: Path) -> Iterator[Room]:
    lines = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in lines:
        yield Room(1024 * (lines["MemAvailable:"] + lines.get("SwapFree:", 0)), _MACHINE)


def _cgroups(root: Path) -> Iterator[Room]:
    """Of each group that this process is in, from the innermost one outwards: what its limit leaves."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                for folder in _outwards(root / mount, path):
                    yield from _version_2(folder)
        elif "memory" in controllers.split(","):
            for folder in _outwards(root / "sys/fs/cgroup/memory", path):
                yield from _version_1(folder)


def _outwards(mount: Path, path: str) -> list[Path]:
    """In a container the path may be that of the host, and the mount the container's own group."""
    inner = mount / path.lstrip("/")
    return [inner, *(parent for parent in inner.parents if parent == mount or mount in parent.parents)]


def _version_2(folder: Path) -> Iterator[Room]:
    limits = [int(text) for name in ("memory.max", "memory.high") if (text := _text(folder / name).strip()).isdigit()]
    used = _text(folder / "memory.current").strip()
    if limits and used.isdigit():
        stat = _numbers(folder / "memory.stat")
        cached = stat.get("active_file", 0) + stat.get("inactive_file", 0)
        yield Room(max(0, min(limits) - int(used) + cached), _CGROUP)


def _version_1(folder: Path) -> Iterator[Room]:
    limit, used = (_text(folder / f"memory.{name}_in_bytes").strip() for name in ("limit", "usage"))
    if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
        stat = _numbers(folder / "memory.stat")
        cached = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
        yield Room(max(0, int(limit) - int(used) + cached), _CGROUP)


def _numbers(path: Path) -> Mapping[str, int]:
    """The first word of each line -> the number behind it."""
    words = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in words if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g} MB"
