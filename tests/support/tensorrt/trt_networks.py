"""Small TensorRT networks for tests, and the one place where tests import TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

import ml_dtypes
import numpy as np

from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.tensorrt.trt_interpreter.dtypes import NATIVE, Array

BF16: Final = np.dtype(ml_dtypes.bfloat16)
FP8: Final = np.dtype(ml_dtypes.float8_e4m3fn)


def tensorrt() -> ModuleType:
    """TensorRT for RTX, which builds networks on machines without a GPU."""
    import tensorrt_rtx

    module: ModuleType = tensorrt_rtx
    return module


class SmallNetwork:
    """A strongly typed network under construction; `add` is TensorRT's `INetworkDefinition`, `trt` its module."""

    def __init__(self) -> None:
        self.trt: Any = tensorrt()
        self._logger = self.trt.Logger(self.trt.Logger.ERROR)
        self._builder = self.trt.Builder(self._logger)
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.add: Any = self._builder.create_network(1 << int(flag))
        self._weights: list[Array] = []  # TensorRT refers to them, it does not copy

    def input(self, name: str, dtype: str, *shape: int) -> Any:
        """A network input; -1 stands for a size that is known only when the network runs."""
        return self.add.add_input(name, getattr(self.trt.DataType, dtype), shape)

    def constant(self, values: Any, dtype: str | None = None) -> Any:
        """A constant tensor: `dtype` is that of the array, unless it is INT4, whose numbers come as integers."""
        array = np.asarray(values)
        name = dtype or next(name for name, native in NATIVE.items() if native == array.dtype and name != "INT4")
        stored = packed_int4(array) if name == "INT4" else np.array(array, NATIVE[name], order="C")
        self._weights.append(stored)
        weights = self.trt.Weights(getattr(self.trt.DataType, name), stored.ctypes.data, array.size)
        return self.add.add_constant(array.shape, weights).get_output(0)

    def output(self, tensor: Any, name: str = "y") -> None:
        """Marks `tensor` as the network's output `name`."""
        tensor.name = name
        self.add.mark_output(tensor)

    def interpreter(self, *, precise: bool = False) -> Interpreter:
        """An interpreter of the network as it stands."""
        return Interpreter(self.add, self.trt, precise=precise)

    def run(self, inputs: Mapping[str, Array] | None = None, *, precise: bool = False) -> Array:
        """The output `y` for `inputs`."""
        return self.interpreter(precise=precise).run(inputs or {})["y"]


def packed_int4(values: Array) -> Array:
    """Integers of -8 ... 7 as TensorRT keeps them: two a byte, the first in the low half."""
    flat = np.append(values.reshape(-1), [0] * (values.size % 2)).astype(np.int64) & 0xF
    return np.asarray(flat[::2] | flat[1::2] << 4, np.uint8)
