"""How much shared memory a server's models need, and whether it is there. Standard library only.

Triton's Python backend passes every tensor through a pool of shared memory, one a model. Left alone a pool grows with
what is sent and never shrinks: one caller's large bodies take the room of all models for good, and a model's process
ends where something small of its own finds none. So pools get their whole size at the start (`pool_arguments`) and
never grow: a body that does not fit is refused by Triton with an error, and takes nobody else's room.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from autoglm_engine.errors import Unavailable

MIB = 1 << 20
SMALLEST_POOL = 8 * MIB  # takes what the gateway lets in, 4 MiB, and the sentence that refuses it
_OWN = 4 * MIB  # options, events and answers that pass at the same time
# Text has 3 to 6 bytes a token. What is wider still, such as blanks, and comes near the model's length, may be refused.
_BYTES_A_TOKEN = 32
_FRAMES = MIB // 4
_KEPT_SHARE = 4
_TEXTS = 2  # messages and tools
_IMAGE_FILES = 16 * MIB  # of one request, as they come and as they go on
# The step that a pool grows by: what is added to it is no size of a file, so that growing fails at once, as an error.
_NO_GROWTH = (1 << 63) - 1
_PYTHON_MODEL = re.compile(r"""^\s*backend\s*:\s*["']python["']""", re.MULTILINE)
_MORE = (
    "give it more: `--shm-size` of Docker, `shm_size` of Compose, in Kubernetes an emptyDir of medium Memory at "
    "{folder}"
)


def pool_bytes(max_length: int, image_bytes: int = 0) -> int:
    """Of each model: whole MiB. `max_length`: tokens of the artifact's slots. `image_bytes`: as `bytes_of_images`."""
    wanted = _OWN + _TEXTS * _BYTES_A_TOKEN * max_length + image_bytes
    return max(SMALLEST_POOL, -(-wanted // MIB) * MIB)


def bytes_of_images(feature_bytes: int) -> int:
    """What images add, whose files and features pass through the pools. `feature_bytes`: of as many tokens as one image
    may have; 0 for a model of text alone."""
    return _IMAGE_FILES + feature_bytes if feature_bytes else 0


def room_bytes(pool: int) -> int | None:
    """What a model's request and its answer may take together in a pool that has `pool` bytes when the model is loaded.
    None for one that grows. Closer to its end Triton may not find room for the answer's frame, and end the process."""
    return pool - _FRAMES if pool >= SMALLEST_POOL else None


def kept_bytes(pool: int) -> int | None:
    """Of an answer, packed, that passes through such a pool in one piece: with its log-probabilities it leaves the
    detokenizer some three times as large. None: whatever it has."""
    return pool // _KEPT_SHARE if pool >= SMALLEST_POOL else None


def pool_arguments(num_bytes: int) -> tuple[str, str]:
    """For tritonserver's command line: pools of that size that never grow."""
    return (
        f"--backend-config=python,shm-default-byte-size={num_bytes}",
        f"--backend-config=python,shm-growth-byte-size={_NO_GROWTH}",
    )


def num_python_models(repository: Path) -> int:
    """Each has a pool of its own."""
    configs = repository.glob("*/config.pbtxt")
    return sum(bool(_PYTHON_MODEL.search(path.read_text(encoding="utf-8", errors="replace"))) for path in configs)


def needed_bytes(num_models: int, max_length: int, board_bytes: int, image_bytes: int = 0) -> int:
    return num_models * pool_bytes(max_length, image_bytes) + board_bytes


def check_size(needed: int, folder: Path) -> None:
    """Whether `folder`, as it was mounted, is large enough. Raises Unavailable."""
    found = os.statvfs(folder)
    _check(needed, found, found.f_blocks, folder, "there")


def check_free(needed: int, folder: Path) -> None:
    """Whether so much of `folder` is free, before anything of the server is in it. Raises Unavailable."""
    found = os.statvfs(folder)
    _check(needed, found, found.f_bavail, folder, "free")


def _check(needed: int, found: os.statvfs_result, num_blocks: int, folder: Path, word: str) -> None:
    there = num_blocks * found.f_frsize
    if found.f_blocks and there < needed:  # no blocks at all say that there is no limit
        raise Unavailable(
            f"the server needs {_told(needed)} of shared memory, and {_told(there)} are {word} in {folder}; "
            + _MORE.format(folder=folder)
        )


def _told(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.1f} MiB"
