"""What the Triton adapters share. Triton itself stays outside: they pass in what they have."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .acks import cells_for
from .board_file import file_bytes
from .boards import SHARED_MEMORY
from .errors import InvalidRequest
from .manifest import Manifest
from .settings import EngineSettings
from .settings_file import parse_text, variable
from .shared_pools import check_size, needed_bytes, num_python_models

ARTIFACT_VARIABLE = "AUTOGLM_ARTIFACT"
_THREADS = "num_threads"


def artifact_folder(model_folder: str, environ: Mapping[str, str] = os.environ) -> Path:
    """`model_folder`: any model's folder in the repository. AUTOGLM_ARTIFACT, else `engine/1/artifact` beside it."""
    chosen = environ.get(ARTIFACT_VARIABLE)
    return Path(chosen) if chosen else Path(model_folder).parent / "engine" / "1" / "artifact"


def engine_settings(model_config: str, environ: Mapping[str, str] = os.environ) -> tuple[EngineSettings, int]:
    """(settings, number of compute threads) from the `parameters` of config.pbtxt, given as Triton's JSON of it.

    The environment goes first: AUTOGLM_MAX_QUEUE for max_queue, and so on. 0 threads means all that this process may
    use. Raises InvalidRequest for an unknown name or a value that is not of its type or range.
    """
    texts = _parameters(model_config)
    fields = [field.name for field in dataclasses.fields(EngineSettings)]
    if unknown := sorted(texts.keys() - set(fields) - {_THREADS}):
        raise InvalidRequest(f"config.pbtxt has the unknown parameter {unknown[0]}; known: {', '.join(fields)}")
    for name in (*fields, _THREADS):
        if (text := environ.get(variable(name))) is not None:
            texts[name] = text
    threads = int(parse_text(_THREADS, texts.pop(_THREADS, "0")))
    values: dict[str, Any] = {name: parse_text(name, text) for name, text in texts.items()}
    return EngineSettings(**values), threads or len(os.sched_getaffinity(0))


def check_shared_memory(model_folder: str, settings: EngineSettings, folder: Path = SHARED_MEMORY) -> None:
    """Raises Unavailable where this machine's or container's shared memory is too small for the repository's models."""
    manifest = Manifest.load(artifact_folder(model_folder))
    board = file_bytes(cells_for(manifest.num_slots, settings.max_queue))
    check_size(needed_bytes(num_python_models(Path(model_folder).parent), manifest.max_length, board), folder)


def exits_with_engine(model_config: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the whole server ends when the engine's process dies: `exit_with_engine`, true unless told otherwise."""
    name = "exit_with_engine"
    return bool(parse_text(name, environ.get(variable(name), _parameters(model_config).get(name, "true"))))


def _parameters(model_config: str) -> dict[str, str]:
    raw: dict[str, Any] = json.loads(model_config).get("parameters", {})
    return {name: str(value["string_value"]) for name, value in raw.items()}
