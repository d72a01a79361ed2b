"""What the Triton adapters share. Triton itself stays outside: they pass in what they have."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import Manifest
from autoglm_engine.settings.file import default_text, parse_text, variable
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.system.shared_pools import bytes_of_images, check_size, needed_bytes, num_python_models
from autoglm_engine.triton.board.acks import cells_for
from autoglm_engine.triton.board.file import file_bytes
from autoglm_engine.triton.board.finder import SHARED_MEMORY

from .neighbours import NAMES, parameters

_THREADS = "num_threads"
_DEVICE = "device"
_EXITS = "exit_with_engine"


def engine_settings(model_config: str, environ: Mapping[str, str] = os.environ) -> tuple[EngineSettings, int]:
    """(settings, number of compute threads) from the `parameters` of config.pbtxt, given as Triton's JSON of it.

    The environment goes first: AUTOGLM_MAX_QUEUE for max_queue, and so on. 0 threads means all that this process may
    use. Raises InvalidRequest for an unknown name or a value that is not of its type or range.
    """
    texts = {name: text for name, text in parameters(model_config).items() if name not in NAMES}
    fields = [field.name for field in dataclasses.fields(EngineSettings)]
    if unknown := sorted(texts.keys() - set(fields) - {_THREADS}):
        raise InvalidRequest(f"config.pbtxt has the unknown parameter {unknown[0]}; known: {', '.join(fields)}")
    for name in (*fields, _THREADS):
        if (text := environ.get(variable(name))) is not None:
            texts[name] = text
    threads = int(parse_text(_THREADS, texts.pop(_THREADS, default_text(_THREADS))))
    values: dict[str, Any] = {name: parse_text(name, text) for name, text in texts.items()}
    return EngineSettings(**values), threads or len(os.sched_getaffinity(0))


def num_threads(model_config: str) -> int:
    """The parameter of that name alone; all cores that this process may use, where it is 0 or not there."""
    text = parameters(model_config).get(_THREADS, default_text(_THREADS))
    return int(parse_text(_THREADS, text)) or len(os.sched_getaffinity(0))


def device(model_config: str, environ: Mapping[str, str] = os.environ) -> str:
    """The setting of that name alone; the environment goes first."""
    texts = {_DEVICE: default_text(_DEVICE)} | parameters(model_config)
    return str(parse_text(_DEVICE, environ.get(variable(_DEVICE), texts[_DEVICE])))


def check_shared_memory(
    repository: Path, artifact: Path, settings: EngineSettings, folder: Path = SHARED_MEMORY
) -> None:
    """Raises Unavailable where this machine's or container's shared memory is too small for the repository's models."""
    manifest = Manifest.load(artifact)
    board = file_bytes(cells_for(manifest.num_slots, settings.max_queue))
    images = bytes_of_images(manifest.vision.feature_bytes if manifest.vision else 0)
    check_size(needed_bytes(num_python_models(repository), manifest.max_length, board, images), folder)


def exits_with_engine(model_config: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the whole server ends when the engine's process dies: `exit_with_engine`, true unless told otherwise."""
    texts = {_EXITS: default_text(_EXITS)} | parameters(model_config)
    return bool(parse_text(_EXITS, environ.get(variable(_EXITS), texts[_EXITS])))
