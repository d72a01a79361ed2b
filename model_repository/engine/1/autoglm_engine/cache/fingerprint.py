"""What tells two requests apart whose answers may differ."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.flat_fields import values_getter
from autoglm_engine.guided.presets import READY

FINGERPRINT_BYTES = 32
_sampling_values = values_getter(SamplingOptions)


def fingerprint(answer_digest: str, request: Request) -> bytes:
    """Of what the server answers (`answer_digest`), the prompt's token ids and images, every sampling option and the
    tenant; of nothing else.

    The text before the token ids holds no byte 0, so no two inputs run together.
    """
    images = [[image.offset, *image.grid, image.digest.hex()] for image in request.images]
    said = json.dumps([answer_digest, request.tenant, _options(request.sampling), *([images] if images else [])])
    ids = np.ascontiguousarray(request.prompt_ids, dtype="<i4").tobytes()
    return hashlib.blake2b(said.encode() + b"\0" + ids, digest_size=FINGERPRINT_BYTES).digest()


def context_fingerprint(answer_digest: str, request: Request) -> bytes:
    """Of everything but the question: what two requests must share to be answered alike by questions that mean the
    same."""
    assert request.question is not None, "a request without a question has no context"
    assert not request.images, "images are not compared by meaning"
    said = json.dumps([answer_digest, request.tenant, _options(request.sampling), request.question.context])
    return hashlib.blake2b(said.encode(), digest_size=FINGERPRINT_BYTES).digest()


def is_deterministic(sampling: SamplingOptions) -> bool:
    return sampling.temperature == 0 or sampling.seed is not None


def _options(sampling: SamplingOptions) -> list[object]:
    """In the order of the fields; equal numbers look alike, whatever their type and the sign of a zero. A ready grammar
    counts by its text: servers of two releases may mean two by one name."""
    values = (*_sampling_values(sampling), READY.get(sampling.guided_grammar))
    return [value + 0.0 if type(value) in (int, float) and not _is_large(value) else value for value in values]


def _is_large(value: float) -> bool:
    """A seed that a float cannot hold exactly."""
    return abs(value) > 2**53
