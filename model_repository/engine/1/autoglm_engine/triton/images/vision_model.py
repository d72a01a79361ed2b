"""The vision model without Triton: an image file in, the rows of the decoder's width that stand for it out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import Manifest
from autoglm_engine.triton.followed_artifact import FollowedArtifact
from autoglm_engine.vision.processor import decoded, patches_of
from autoglm_engine.vision.tower import Features, Tower, open_tower


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """`features`: float32 [rows * columns, hidden_size]. `seconds`: of decoding the file, of resizing and cutting, of
    the tower, float32 [3]."""

    features: Features
    seconds: npt.NDArray[np.float32]


class VisionService:
    """One thread uses it. `folder`: of the artifact, which may have no tower: then whoever asks is refused."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        load = partial(_load, num_threads=num_threads)
        self._towers = FollowedArtifact[Tower | None](folder, load, most=1, let_go=_close)

    def read(self) -> None:
        """As `FollowedArtifact.read`."""
        self._towers.read()

    def encode(self, image: bytes, grid: npt.NDArray[Any], artifact: str) -> EncodedImage:
        """`grid`: the rows and columns of tokens that the caller counts on.
        `artifact`: `Manifest.short_digest` of what the engine serves. Raises InvalidRequest and Unavailable."""
        tower = self._towers.of(artifact)
        if tower is None:
            raise InvalidRequest("the model that is served reads text only: its artifact has no vision tower")
        rows, columns = grid.reshape(-1).tolist()
        return encode_image(image, (rows, columns), tower)

    def close(self) -> None:
        self._towers.close()


def encode_image(
    image: bytes, tokens: tuple[int, int], tower: Tower, clock: Callable[[], float] = time.monotonic
) -> EncodedImage:
    """`tokens`: the rows and columns of tokens to make of it. Raises InvalidRequest."""
    times = [clock()]
    pixels = decoded(image)
    times.append(clock())
    patches = patches_of(pixels, tower.settings, tokens)
    times.append(clock())
    features = tower.encode(patches)
    times.append(clock())
    if not np.isfinite(features).all():
        raise InvalidRequest("the vision tower makes numbers of this image that are not finite")
    return EncodedImage(features, np.diff(times).astype(np.float32))


def _load(folder: Path, manifest: Manifest, num_threads: int) -> Tower | None:
    if manifest.vision is None:
        return None
    manifest.verify_files(folder, [manifest.vision.model], digests=True)
    return open_tower(folder, manifest, num_threads=num_threads)


def _close(tower: Tower | None) -> None:
    if tower is not None:
        tower.close()
