"""Puts a folder in place whole or not at all.

The files are written into a hidden folder, `.NAME.partial-PID`, flushed to the disk and then exchanged for what is
there. After a crash only such a folder is left, which the next export into the same place removes once its process is
gone.

It lies beside the output; for one inside of a model repository beside that, where it can: a server that polls the
repository loads a model again whenever something in the model's folder changes, and would do so with half of an
artifact.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExportError, InvalidOption

MARKER = "manifest.json"
_AT_FDCWD = -100  # of renameat2(2)
_RENAME_EXCHANGE = 2


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A fresh folder that becomes `output` when the block ends well and vanishes when it raises."""
    output = output.resolve()  # a link stays, its target is replaced
    check_replaceable(output)
    place = _place(output)
    stage = _hidden(place, "partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place)
        stage.mkdir()
        yield stage
        _sync(stage)
        _install(stage, output)
    except OSError as error:
        raise ExportError(f"writing {error.filename or output} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_replaceable(output: Path) -> None:
    """An earlier artifact or an empty folder may be replaced; anything else of the user's may not."""
    if output.is_dir() and ((output / MARKER).is_file() or not any(output.iterdir())):
        return
    if output.exists() or output.is_symlink():
        raise InvalidOption(f"{output} exists and is no artifact; name another output folder")


def _place(output: Path) -> Path:
    """Hidden names are made of this path. Beside a model repository it says which one, and which of its folders."""
    repository = _repository_of(output)
    if repository is None or not _can_move(repository.parent, output):
        return output
    return repository.parent / "-".join([repository.name, *output.relative_to(repository).parts])


def _repository_of(output: Path) -> Path | None:
    """The folder of the folder with a config.pbtxt."""
    return next((parent.parent for parent in output.parents if (parent / "config.pbtxt").is_file()), None)


def _can_move(folder: Path, output: Path) -> bool:
    """Whether a folder can be made in `folder`, and be renamed to `output`. A mounted repository is a file system of
    its own."""
    there = next(parent for parent in output.parents if parent.exists())
    return os.access(folder, os.W_OK) and folder.stat().st_dev == there.stat().st_dev


def _hidden(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{kind}-{os.getpid()}")


def _remove_leftovers(place: Path) -> None:
    for kind in ("partial", "replaced"):
        for path in place.parent.glob(f".{place.name}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdigit() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _install(stage: Path, output: Path) -> None:
    """At no moment is nothing there, where the system can exchange two folders; `stage` has the old one then."""
    if not output.exists():
        stage.rename(output)
    elif not _exchange(stage, output):
        _replace(stage, output)
    _sync_one(output.parent)


def _exchange(one: Path, other: Path) -> bool:
    """False where the C library or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return rename is not None and rename(*arguments) == 0


def _replace(stage: Path, output: Path) -> None:
    old = _hidden(stage.with_name(output.name), "replaced")
    output.rename(old)
    try:
        stage.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
