"""The shapes that a TensorRT engine runs with: its cache's length, its profiles, and the lengths that a runner pads to.

What they mean is in `tensorrt/lowering.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from autoglm_export.model.spec import ModelSpec

from .build import Profile, Shape

ATTENTION_LENGTHS = (256, 1024, 4096, 16384)  # and the cache's own
PREFILL_LENGTHS = (16, 64, 128, 256)  # up to here a call costs what reading the weights does, padding is free
BATCHED_ROWS = 8
BATCHED_LENGTH = 128  # beyond some 200 tokens a call is bound by arithmetic, and more rows save nothing
_USUAL_KEYS = 4096  # that kernels are timed for
_CACHE_MULTIPLE = 16  # positions


def cache_length_of(max_length: int, prefill_chunk: int) -> int:
    """Positions of a slot's cache: as many beyond what a slot holds as an idle row of a batched prefill writes."""
    return -(-(max_length + min(BATCHED_LENGTH, prefill_chunk)) // _CACHE_MULTIPLE) * _CACHE_MULTIPLE


def attention_lengths_of(cache_length: int) -> list[int]:
    """How many positions attention may read, rising."""
    return [length for length in ATTENTION_LENGTHS if length < cache_length] + [cache_length]


def prefill_lengths_of(prefill_chunk: int) -> list[int]:
    """What prompts are padded to, rising. Beyond `PREFILL_LENGTHS` each padded token costs what a real one does, so
    there are four lengths in each doubling: padding adds a quarter at most, and not the double."""
    lengths = list(PREFILL_LENGTHS)
    while lengths[-1] < prefill_chunk:
        lengths += [lengths[-1] * quarters // 4 for quarters in (5, 6, 7, 8)]
    return [length for length in lengths if length < prefill_chunk] + [prefill_chunk]


def feature_rows_of(num_slots: int, prefill_chunk: int) -> int:
    """As many as any call of the profiles has tokens."""
    batched = min(BATCHED_ROWS, num_slots) * min(BATCHED_LENGTH, prefill_chunk)
    return max(num_slots, prefill_chunk, batched)


def profiles_of(
    spec: ModelSpec, num_slots: int, prefill_chunk: int, cache_length: int, decode_tokens: int = 1
) -> tuple[Profile, ...]:
    """In the order of the engine's. `decode_tokens`: the most that a decode call's rows may have, of which one is
    used."""
    rows, tokens = min(BATCHED_ROWS, num_slots), min(BATCHED_LENGTH, prefill_chunk)
    profile = partial(_profile, spec, cache_length, feature_rows_of(num_slots, prefill_chunk))
    return (
        profile("decode", num_slots, 1, decode_tokens),
        profile("prefill", 1, prefill_chunk),
        profile("batched_prefill", rows, tokens),
    )


def _profile(
    spec: ModelSpec,
    cache_length: int,
    feature_rows: int,
    name: str,
    batch: int,
    sequence: int,
    max_tokens: int | None = None,
) -> Profile:
    """K begins at 1: of a length that never changes TensorRT-RTX 1.7 finds no float16 kernel that accumulates in
    float32."""
    shapes, usual = partial(input_shapes, spec, cache_length, feature_rows), min(_USUAL_KEYS, cache_length)
    largest = shapes(batch, max_tokens or sequence, cache_length)
    return Profile(name, shapes(1, 1, 1), shapes(batch, sequence, usual), largest)


def input_shapes(
    spec: ModelSpec, cache_length: int, feature_rows: int, batch: int, sequence: int, keys: int
) -> dict[str, Shape]:
    """Name -> shape of every input of the engine."""
    of_images = {"rope_positions": (batch, 3, sequence), "image_features": (feature_rows, spec.feature_size)}
    cache = (batch, spec.num_kv_heads, cache_length, spec.head_size)
    names = [f"past_{kind}_{layer}" for layer in range(spec.num_layers) for kind in ("key", "value")]
    return {
        "token_ids": (batch, sequence),
        "position_ids": (batch, sequence),
        "write_indices": (batch,),
        "key_positions": (keys,),
        "logit_indices": (batch, 1),
        "inverse_temperature": (batch, 1),
        "logit_factor": (batch, spec.vocab_size),
        "logit_offset": (batch, spec.vocab_size),
        **(of_images if spec.takes_images else {}),
    } | dict.fromkeys(names, cache)


def ranges_of(profile: Profile) -> dict[str, list[Any]]:
    """What the manifest tells of a profile: the ranges of B, S and K."""
    tokens, keys = (
        [side[name] for side in (profile.smallest, profile.largest)] for name in ("token_ids", "key_positions")
    )
    (batch, sequence), (key_range,) = (map(list, zip(*shapes, strict=True)) for shapes in (tokens, keys))
    return {"batch": batch, "sequence": sequence, "keys": key_range}
