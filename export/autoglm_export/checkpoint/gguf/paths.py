"""Which files a path to a GGUF model means: a file, all shards of one, or what a folder holds.

Shards are named as llama.cpp's gguf-split does (`llama_split_path`): NAME-00001-of-00003.gguf. The vision part of a
model lies in a file of its own beside it, which has `mmproj` in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoglm_export.errors import CheckpointError

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
PROJECTOR = "mmproj"


@dataclass(frozen=True, slots=True)
class GgufPaths:
    """`shards`: of one model, in their order. `projectors`: vision parts in the same folder; `is_folder`: that was
    named, and not a file of it."""

    name: str
    shards: tuple[Path, ...]
    projectors: tuple[Path, ...]
    is_folder: bool


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def gguf_paths(path: Path) -> GgufPaths | None:
    """Of a file, any shard, or a folder with one model. None where there is no GGUF file. Raises CheckpointError for a
    shard that is missing, and for a folder with several models."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_visible_gguf(file))
        models = {_shards_of(file): None for file in files if not is_projector(file)}
        if len(models) > 1:
            names = ", ".join(shards[0].name for shards in models)
            raise CheckpointError(f"{path} holds several models; name one of them: {names}")
        if not models:
            return None
        shards = _whole(next(iter(models)))
        return GgufPaths(path.resolve().name, shards, _projectors(files), True)
    if not (is_gguf(path) and path.is_file()):
        return None
    shards = _whole(_shards_of(path))
    match = _SHARD.fullmatch(path.stem)
    beside = sorted(file for file in path.parent.iterdir() if _is_visible_gguf(file) and file.name != path.name)
    return GgufPaths(match["name"] if match else path.stem, shards, _projectors(beside), False)


def is_projector(path: Path) -> bool:
    return PROJECTOR in path.name.lower()


def _is_visible_gguf(path: Path) -> bool:
    return is_gguf(path) and path.is_file() and not path.name.startswith(".")


def _projectors(files: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(file for file in files if is_projector(file))


def _shards_of(path: Path) -> tuple[Path, ...]:
    """All that there should be, by the name of one."""
    match = _SHARD.fullmatch(path.stem)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise CheckpointError(f"{path.name} is named as shard {number} of {count}")
    return tuple(
        path.with_name(f"{match['name']}-{index:05}-of-{count:05}{path.suffix}") for index in range(1, count + 1)
    )


def _whole(shards: tuple[Path, ...]) -> tuple[Path, ...]:
    if missing := [shard for shard in shards if not shard.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{missing[0].parent} lacks {missing[0].name}{more} of {len(shards)} shards")
    return shards
