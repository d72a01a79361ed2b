"""An ONNX model under construction: nodes in memory, weights streamed to a file beside it.

Source of the format: onnx.proto, `TensorProto.external_data` (location, offset, length).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

MODEL_FILE = "model.onnx"
CONTRIB = "com.microsoft"
_OPSET = 21
_IR_VERSION = 10
_ALIGNMENT = 64  # bytes; a runtime that maps the file gets aligned tensors
_INLINE = 1024  # bytes; smaller tensors stay in the model file, where shape inference sees them


class OnnxGraph:
    """Collects nodes, inputs and outputs; use as a context manager, which closes the weights file."""

    def __init__(self, folder: Path, model: str = MODEL_FILE, name: str = "decoder") -> None:
        """`model`: the file in `folder`; the weights lie beside it, in `model`.data."""
        self._path, self._name, self._weights_file = folder / model, name, f"{model}.data"
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self._casts: dict[tuple[str, str], str] = {}
        self._count = 0
        self._file = (folder / self._weights_file).open("wb")

    def __enter__(self) -> OnnxGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def node(
        self, op: str, inputs: Sequence[str], *, domain: str = "", num_outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """Add a node with fresh output names."""
        from onnx import helper

        self._count += 1
        outputs = [f"{op}_{self._count}.{i}" for i in range(num_outputs)]
        self._nodes.append(
            helper.make_node(op, inputs, outputs, name=f"{op}_{self._count}", domain=domain, **attributes)
        )
        return outputs

    def op(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.node(op, inputs, domain=domain, **attributes)[0]

    def named(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs have given names (graph outputs)."""
        from onnx import helper

        self._nodes.append(
            helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[-1]}", domain=domain, **attributes)
        )

    def cast(self, value: str, dtype: npt.DTypeLike) -> str:
        """`value` as another type. The same value is cast once."""
        from onnx import helper

        key = value, np.dtype(dtype).name
        if key not in self._casts:
            self._casts[key] = self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        return self._casts[key]

    def tensor(self, name: str, array: npt.NDArray[Any]) -> str:
        """A constant; large ones go to the weights file. The same name is written once."""
        from onnx import numpy_helper

        if name not in self._tensors:
            array = np.ascontiguousarray(array) if array.ndim else array
            inline = array.nbytes <= _INLINE
            self._tensors[name] = numpy_helper.from_array(array, name) if inline else self._external(name, array)
        return name

    def has_tensor(self, name: str) -> bool:
        return name in self._tensors

    def _external(self, name: str, array: npt.NDArray[Any]) -> Any:
        from onnx import TensorProto, helper

        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        place = {"location": self._weights_file, "offset": str(self._file.tell()), "length": str(array.nbytes)}
        self._file.write(array.data)
        proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            proto.external_data.add(key=key, value=value)
        return proto

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        self._outputs.append(_value_info(name, dtype, shape))
        return name

    def save(self) -> None:
        import onnx
        from onnx import helper

        self._file.flush()
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._tensors.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="autoglm_export")
        onnx.save_model(model, str(self._path))


def _value_info(name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
