"""Puts a folder in place whole or not at all.

The files are written into a hidden sibling, `.NAME.partial-PID`, flushed to the disk and then renamed. After a crash only
such a sibling is left, which the next export into the same place removes once its process is gone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExportError, InvalidOption

MARKER = "manifest.json"


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A fresh folder that becomes `output` when the block ends well and vanishes when it raises."""
    output = output.resolve()  # a link stays, its target is replaced
    check_replaceable(output)
    stage = _sibling(output, "partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
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


def _sibling(output: Path, kind: str) -> Path:
    return output.with_name(f".{output.name}.{kind}-{os.getpid()}")


def _remove_leftovers(output: Path) -> None:
    for kind in ("partial", "replaced"):
        for path in output.parent.glob(f".{output.name}.{kind}-*"):
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
    if not output.exists():
        stage.rename(output)
    else:
        old = _sibling(output, "replaced")
        output.rename(old)
        try:
            stage.rename(output)
        except OSError:
            old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_one(output.parent)
