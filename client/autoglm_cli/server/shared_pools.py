"""The shared memory that a server started here gets: how much its models' pools take, and whether there is so much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autoglm_client.exceptions import LocalServerError
from autoglm_client.transport.segment import FOLDER

from autoglm_cli.repository.repositories import default_artifact, families, own_artifact

DEFAULT_MAX_QUEUE = 512


@dataclass(frozen=True, slots=True)
class SharedPools:
    """`max_length`: of the longest of its artifacts. `board_bytes`: of all its engines' acknowledgement boards.
    `image_bytes`: what images add to a pool."""

    num_models: int
    max_length: int
    board_bytes: int
    image_bytes: int = 0

    @classmethod
    def of(cls, repository: Path, artifacts: Iterable[tuple[Path, int]]) -> SharedPools:
        """`artifacts`: each with its engine's `max_queue`. Of one that cannot be read nothing is known; its load will
        say so."""
        from autoglm_engine.errors import EngineError
        from autoglm_engine.manifest import Manifest
        from autoglm_engine.system.shared_pools import bytes_of_images, num_python_models
        from autoglm_engine.triton.board.acks import cells_for
        from autoglm_engine.triton.board.file import file_bytes

        max_length = board_bytes = feature_bytes = 0
        for artifact, max_queue in artifacts:
            try:
                manifest = Manifest.load(artifact)
            except EngineError:
                continue
            max_length = max(max_length, manifest.max_length)
            feature_bytes = max(feature_bytes, manifest.vision.feature_bytes if manifest.vision else 0)
            board_bytes += file_bytes(cells_for(manifest.num_slots, max_queue))
        return cls(num_python_models(repository), max_length, board_bytes, bytes_of_images(feature_bytes))

    @classmethod
    def of_repository(cls, repository: Path, chosen: Path | None) -> SharedPools:
        """`chosen`: the artifact of the families that name none themselves; None: each one's own folder."""
        folders = [
            own_artifact(repository, names) or chosen or default_artifact(repository, names)
            for names in families(repository)
        ]
        return cls.of(repository, [(folder, DEFAULT_MAX_QUEUE) for folder in folders])

    @property
    def arguments(self) -> tuple[str, ...]:
        """For tritonserver."""
        from autoglm_engine.system.shared_pools import pool_arguments, pool_bytes

        return pool_arguments(pool_bytes(self.max_length, self.image_bytes))

    def check(self, folder: Path = FOLDER) -> None:
        """Raises LocalServerError where shared memory has less free than they take."""
        from autoglm_engine.errors import Unavailable
        from autoglm_engine.system.shared_pools import check_free, needed_bytes

        try:
            check_free(needed_bytes(self.num_models, self.max_length, self.board_bytes, self.image_bytes), folder)
        except Unavailable as error:
            raise LocalServerError(str(error)) from None
