"""The file of an artifact that says what a GPU must compute: written by the exporter in numpy, read by
`runners.device_check.check`.

Two parts. *A layer*: for rows of several lengths, whose caches hold `runners.device_check.pattern`, what the first
layer makes of a few new tokens; told by the keys and values that the second layer writes of them, or by the logits of a
model of one layer. And
*a text*: which tokens are likeliest at its last places, by one pass of the whole model in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import ArtifactError

REFERENCE_FILE = "reference.npz"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DeviceReference:
    """R lengths, C new tokens at most, P places of the text; width: of keys and values side by side, or the
    vocabulary."""

    lengths: tuple[int, ...]  # of the rows, the new tokens among them, rising
    exponents: dict[str, int]  # "key", "value": of the pattern's power of two
    token_ids: (
        TokenIds  # [R, C]: of a row of length n the last min(n, C) count; a decode step computes only the last one
    )
    decode: Floats  # [R, width]
    prefill: Floats  # [R, C, width], the last min(n, C) count; [R, 1, width] where width is the vocabulary
    bound: float  # relative L2 distance of a row that rounding explains
    text: TokenIds  # the last P tokens are fed one by one
    likely_ids: TokenIds  # [P, k]: the likeliest tokens after each of them, best first
    likely_logits: Floats  # [P, k]
    slack: Floats  # [P]: a token whose logit is so little below the largest may take its place by rounding
    max_missed: int  # places where another token may be the likeliest

    def save(self, path: Path) -> None:
        exponents = [self.exponents["key"], self.exponents["value"]]
        np.savez_compressed(
            path,
            lengths=np.array(self.lengths, np.int64),
            exponents=np.array(exponents, np.int64),
            limits=np.array([self.bound, self.max_missed], np.float64),
            **{name: getattr(self, name) for name in _SHAPES},
        )

    @classmethod
    def load(cls, path: Path) -> DeviceReference:
        """Raises ArtifactError for a file that is none, or that contradicts itself."""
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in ("lengths", "exponents", "limits", *_SHAPES)}
            return _checked(arrays)
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise ArtifactError(f"{path} is no reference to check a GPU by: {error}; export it again") from None


# name -> dtype and number of axes
_SHAPES: dict[str, tuple[Any, int]] = {
    "token_ids": (np.int32, 2),
    "decode": (np.float32, 2),
    "prefill": (np.float32, 3),
    "text": (np.int32, 1),
    "likely_ids": (np.int32, 2),
    "likely_logits": (np.float32, 2),
    "slack": (np.float32, 1),
}


def _checked(arrays: dict[str, npt.NDArray[Any]]) -> DeviceReference:
    """Raises ValueError."""
    for name, (dtype, num_axes) in _SHAPES.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != num_axes:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    rows, places = len(arrays["lengths"]), len(arrays["slack"])
    sizes = {name: len(arrays[name]) for name in ("token_ids", "decode", "prefill")}
    if set(sizes.values()) != {rows} or len(arrays["likely_ids"]) != places or len(arrays["text"]) < places:
        raise ValueError(f"it has {rows} lengths and {places} places, and {sizes}")
    lengths = arrays["lengths"].tolist()
    if not lengths or lengths[0] < 1 or lengths != sorted(set(lengths)):
        raise ValueError(f"its lengths are {lengths}; they must rise from 1 or more")
    bound, max_missed = arrays["limits"].tolist()
    key, value = arrays["exponents"].tolist()
    return DeviceReference(
        lengths=tuple(lengths),
        exponents={"key": key, "value": value},
        bound=bound,
        max_missed=int(max_missed),
        **{name: arrays[name] for name in _SHAPES},
    )
