"""The shared memory that a server started here gets: how much its models' pools take, and whether there is so much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .exceptions import LocalServerError
from .segment import FOLDER


@dataclass(frozen=True, slots=True)
class SharedPools:
    """`board_bytes`: of the engine's acknowledgement board."""

    num_models: int
    max_length: int
    board_bytes: int

    @classmethod
    def of(cls, repository: Path, artifact: Path, max_queue: int | None = None) -> SharedPools:
        """Of an artifact that cannot be read nothing is known; its load will say so. `max_queue`: None for the default."""
        from autoglm_engine.acks import cells_for
        from autoglm_engine.board_file import file_bytes
        from autoglm_engine.errors import EngineError
        from autoglm_engine.manifest import Manifest
        from autoglm_engine.settings import ServingSettings
        from autoglm_engine.shared_pools import num_python_models

        try:
            manifest = Manifest.load(artifact)
            num_slots, max_length = manifest.num_slots, manifest.max_length
        except EngineError:
            num_slots, max_length = 0, 0
        max_queue = ServingSettings().max_queue if max_queue is None else max_queue
        return cls(num_python_models(repository), max_length, file_bytes(cells_for(num_slots, max_queue)))

    @property
    def arguments(self) -> tuple[str, ...]:
        """For tritonserver."""
        from autoglm_engine.shared_pools import pool_arguments, pool_bytes

        return pool_arguments(pool_bytes(self.max_length))

    def check(self, folder: Path = FOLDER) -> None:
        """Raises LocalServerError where shared memory has less free than they take."""
        from autoglm_engine.errors import Unavailable
        from autoglm_engine.shared_pools import check_free, needed_bytes

        try:
            check_free(needed_bytes(self.num_models, self.max_length, self.board_bytes), folder)
        except Unavailable as error:
            raise LocalServerError(str(error)) from None
