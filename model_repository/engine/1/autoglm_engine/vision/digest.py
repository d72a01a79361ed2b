"""Which image: what two images have in common exactly when their features do, for one artifact."""

from __future__ import annotations

import hashlib
import json

from autoglm_engine.manifest import VisionSettings

DIGEST_BYTES = 32
_PREPROCESSING = (
    *("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels", "frames", "grows_small"),
    *("image_mean", "image_std"),
)


def image_digest(content: bytes, settings: VisionSettings) -> bytes:
    """BLAKE2b of the bytes of an image file and of how they are preprocessed."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"autoglm image")
    preprocessing = json.dumps([getattr(settings, name) for name in _PREPROCESSING]).encode()
    digest.update(len(preprocessing).to_bytes(4, "little"))
    digest.update(preprocessing)
    digest.update(content)
    return digest.digest()
