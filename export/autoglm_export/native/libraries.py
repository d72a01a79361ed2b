"""Sources compiled for every class of x86-64 CPUs, so that an artifact serves wherever it is copied to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_export.compiler import DECODER_SOURCE, TARGETS, build, find_compiler, runnable_targets, sources_digest
from autoglm_export.errors import ExportError

FOLDER = "decoder"
IMAGES_FOLDER = "images"


@dataclass(frozen=True, slots=True)
class Libraries:
    """Compilations of `source` under way."""

    futures: Mapping[str, Future[Path]]  # by the target's name
    source: Path

    @classmethod
    @contextmanager
    def building(cls, source: Path = DECODER_SOURCE) -> Iterator[Libraries]:
        """Compile in the background. Raises ExportError without a compiler."""
        find_compiler()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            yield cls({target.name: pool.submit(build, source, target) for target in TARGETS}, source)

    @property
    def sources(self) -> str:
        """What was compiled, whatever the compiler made of it."""
        return sources_digest(self.source)

    def write(self, folder: Path, subfolder: str = FOLDER) -> dict[str, Any]:
        """Wait for all, and copy them into `subfolder` of `folder`: name of the target -> its file and the CPU features
        that it needs.

        A class that the compiler is too old for is left out. Raises ExportError where none that this CPU runs was
        built.
        """
        (folder / subfolder).mkdir()
        written: dict[str, Any] = {}
        error: BaseException | None = None
        for target in TARGETS:
            if problem := self.futures[target.name].exception():
                error = problem
                continue
            file = f"{subfolder}/{target.name}.so"
            shutil.copyfile(self.futures[target.name].result(), folder / file)
            written[target.name] = {"file": file, "cpu_features": list(target.cpu_features)}
        if not any(target.name in written for target in runnable_targets()):
            raise error or ExportError("no library was built")
        return written
