"""How long slots are where nobody says it: as long as the model goes, and as this machine's memory does."""

from __future__ import annotations

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.host_memory import Room, check_memory, memory_room

from .model.spec import ModelSpec
from .runtimes import runtime_named

SHARE = 3  # keys and values of all slots take at most one part in so many of the memory that is free
DEFAULT_LENGTH = 1024  # where the model goes further, at least this; and just this where keys and values lie on a GPU


def default_length(spec: ModelSpec, runtime: str, precision: str, num_slots: int, *, room: Room | None = None) -> int:
    """The model's own positions, halved until the keys and values of `num_slots` such slots are within a third of the
    free memory (`room`; None: what is free now). Halved, so that what else the machine does seldom changes it."""
    if (value_bytes := runtime_named(runtime, precision).host_cache.get(precision)) is None:
        return min(DEFAULT_LENGTH, spec.max_position)
    room = room or memory_room()
    position_bytes = 2 * num_slots * spec.num_layers * spec.num_kv_heads * spec.head_size * value_bytes
    length = spec.max_position
    while room is not None and length > DEFAULT_LENGTH and length * position_bytes > room.num_bytes // SHARE:
        length = max(DEFAULT_LENGTH, length // 2)
    return length


def length_line(manifest: Manifest) -> str:
    """How long an artifact's slots are, and why, where that was left to `default_length`."""
    length, most = manifest.max_length, int(manifest.spec["max_position"])
    said = f"slots of {length:,} tokens (--max-length)"
    if length == most:
        return f"{said}: all positions that the model has"
    if manifest.precision not in runtime_named(manifest.runtime, manifest.precision).host_cache:
        return f"{said}, of the model's {most:,}: how much memory the GPU will have is not known here"
    return (
        f"{said}, of the model's {most:,}: {manifest.num_slots} longer ones would take over a third of the free memory"
    )


def memory_line(manifest: Manifest, *, room: Room | None = None) -> str:
    """What a server on this machine would say, where it cannot hold an artifact's slots; else nothing, also of keys and
    values on a GPU. `room`: as in `default_length`."""
    value_bytes = runtime_named(manifest.runtime, manifest.precision).host_cache.get(manifest.precision)
    if value_bytes is None:
        return ""
    cache = manifest.cache
    position_bytes = 2 * cache.num_layers * cache.num_kv_heads * cache.head_size * value_bytes
    try:
        check_memory(manifest, manifest.num_slots * manifest.max_length * position_bytes, room=room)
    except ArtifactError as error:
        return f"a server on this machine would refuse it: {error}"
    return ""
