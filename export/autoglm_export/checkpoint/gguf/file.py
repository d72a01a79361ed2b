"""The metadata and tensors of a GGUF file, or of all shards of one.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Shards: llama.cpp's gguf-split keeps the model's metadata in
the first one, and in each of them `split.no` (from 0), `split.count` and, of all together, `split.tensors.count`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array, Shape, finite
from autoglm_export.errors import CheckpointError, TensorError

from .header import check_header

DECODED = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"),
    "MXFP4",
)
BLOCK = 1 << 20  # numbers that are dequantised at once: the library holds them twice
_OF_ALL_SHARDS = ("general.architecture", "general.name", "split.tensors.count")


def _read_gguf(path: Path) -> Any:
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        """numpy's memmap costs three times an array's time a slice, and there are hundreds of thousands of them."""

        @property
        def data(self) -> npt.NDArray[np.uint8]:
            return self._data

        @data.setter
        def data(self, mapped: npt.NDArray[np.uint8]) -> None:
            self._data = mapped.view(np.ndarray)

    check_header(path)
    try:
        return PlainReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise CheckpointError(f"{path.name} is truncated or no GGUF file: {error}") from None


class GgufFile:
    """The metadata of the first of `shards`, and the tensors of all (a `TensorStore`), dequantised as they are read.
    Raises CheckpointError, naming the file."""

    def __init__(self, *shards: Path) -> None:
        readers = {path: _read_gguf(path) for path in shards}
        _check_shards({path: reader.fields for path, reader in readers.items()})
        self._fields: dict[str, Any] = dict(readers[shards[0]].fields)
        self._values: dict[str, Any] = {}
        self._tensors: dict[str, Any] = {}
        for path, reader in readers.items():
            self._add_tensors(path, reader.tensors)
        expected = self.get("split.tensors.count", len(self._tensors))
        if expected != len(self._tensors):
            raise CheckpointError(
                f"{shards[0].name} says that all shards have {expected!r:.40} tensors; they have {len(self._tensors)}"
            )

    def _add_tensors(self, path: Path, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            if tensor.name in self._tensors:
                raise TensorError(f"the tensor {tensor.name} is in {path.name} and in a shard before it")
            if tensor.tensor_type.name not in DECODED:
                raise CheckpointError(
                    f"the tensor {tensor.name} has type {tensor.tensor_type.name}, which has no decoder; "
                    f"supported are {', '.join(DECODED)}"
                )
            self._tensors[tensor.name] = tensor

    def metadata_names(self) -> Collection[str]:
        return self._fields.keys()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, read once: a list is some 100,000 tokens."""
        if key not in self._values:
            self._values[key] = _value(self._fields, key, None)
        return default if key not in self._fields else self._values[key]

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> Shape:
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str, rows: slice) -> Array:
        tensor, shape = self._tensors[name], self.shape(name)
        with np.errstate(all="ignore"):  # what is wrong is told in a sentence
            if len(shape) < 2:  # a quantised one is not cut between two of its numbers
                return finite(name, _dequantised(tensor.data, tensor.tensor_type)[rows])
            begin, end, _ = rows.indices(shape[0])
            values = np.empty((end - begin, *shape[1:]), np.float32)
            num_rows = max(1, BLOCK // max(1, prod(shape[1:])))
            for row in range(begin, end, num_rows):
                block = tensor.data[row : min(row + num_rows, end)]
                values[row - begin : row - begin + len(block)] = _dequantised(block, tensor.tensor_type)
        return finite(name, values)


def _dequantised(data: npt.NDArray[Any], kind: Any) -> Array:
    from gguf.quants import dequantize

    return np.asarray(dequantize(data, kind), dtype=np.float32)


def _check_shards(fields: Mapping[Path, Mapping[str, Any]]) -> None:
    first = next(iter(fields.values()))
    for index, (path, own) in enumerate(fields.items()):
        said, meant = (_value(own, "split.no", 0), _value(own, "split.count", 1)), (index, len(fields))
        if said != meant and said != (0, 0):  # as an unsplit file may say it
            raise CheckpointError(
                f"{path.name} says split.no {said[0]!r:.40} and split.count {said[1]!r:.40}; by its name they are "
                f"{index} and {len(fields)}"
            )
        for key in _OF_ALL_SHARDS:
            if key in own and (value := _value(own, key, None)) != _value(first, key, None):
                raise CheckpointError(f"{path.name} is a shard of another model: its {key} is {value!r:.60}")


def _value(fields: Mapping[str, Any], key: str, default: Any) -> Any:
    try:
        return fields[key].contents() if key in fields else default
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the metadata {key} are not UTF-8: {error.reason}") from None
