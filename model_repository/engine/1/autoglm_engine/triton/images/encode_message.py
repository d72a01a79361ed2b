"""What the engine asks of the vision model: JSON in a UINT8 tensor, sealed together with the image's file, which is in
a tensor of its own."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.message_fields import MAX_INT64, integer, sequence, text
from autoglm_engine.messages import Packed

from .feature_memory import check_path


@dataclass(frozen=True, slots=True)
class EncodeMessage:
    """`number`: of the engine's encodes, by which it gives them up. `rows` and `columns` of tokens, which the engine
    counts on. `artifact`: `Manifest.short_digest` of what it serves. `memory`: the path of the `FeatureMemory` for
    the features."""

    number: int
    rows: int
    columns: int
    artifact: str
    memory: str

    def packed(self) -> Packed:
        return np.frombuffer(json.dumps(astuple(self)).encode(), dtype=np.uint8)

    @classmethod
    def unpacked(cls, packed: Packed) -> EncodeMessage:
        """Raises InvalidRequest."""
        try:
            raw: Any = json.loads(packed.tobytes())
        except ValueError:
            raise InvalidRequest("what is asked of an image is no JSON") from None
        number, rows, columns, artifact, memory = sequence("what is asked of an image", raw, 5)
        return cls(
            integer("the number of an encode", number, 1, MAX_INT64),
            integer("the rows of an image", rows, 1),
            integer("the columns of an image", columns, 1),
            text("the artifact of an image", artifact),
            check_path(text("the memory of an image", memory)),
        )
