"""What shapes of models each runtime's kernels compute; a model of another shape is refused before anything is
written."""

from __future__ import annotations

from collections.abc import Iterator

from autoglm_export.model.spec import ModelSpec

from .errors import UnsupportedModel

# A product of int8 values is summed in 32 bits, and the largest one is 127 * 128.
MAX_INT8_INPUTS = 131_072
_NATIVE_HEAD_MULTIPLE = 2  # keys are kept in pairs
_ONNX_MULTIPLE = 16  # of GroupQueryAttention's kernel


def check_shape(spec: ModelSpec, runtime: str, precision: str) -> None:
    """Raises UnsupportedModel, naming the value and what the runtime takes. TensorRT says itself what it cannot
    build."""
    if problem := next(_problems(spec, runtime, precision), None):
        raise UnsupportedModel(problem)


def _problems(spec: ModelSpec, runtime: str, precision: str) -> Iterator[str]:
    if runtime == "native" and spec.head_size % _NATIVE_HEAD_MULTIPLE:
        yield f"the head size is {spec.head_size}; the native runtime takes even ones"
    if runtime == "onnx" and spec.rope.dims % _ONNX_MULTIPLE:
        yield f"rope turns {spec.rope.dims} dimensions; ONNX Runtime turns multiples of {_ONNX_MULTIPLE}"
    if runtime == "onnx" and spec.head_size % _ONNX_MULTIPLE:
        yield f"the head size is {spec.head_size}; ONNX Runtime takes multiples of {_ONNX_MULTIPLE}"
    if precision == "int8":
        for name, inputs in _inputs(spec).items():
            if inputs > MAX_INT8_INPUTS:
                yield f"the layer {name} has {inputs} inputs; a sum of int8 products holds up to {MAX_INT8_INPUTS}"


def _inputs(spec: ModelSpec) -> dict[str, int]:
    """The widest layers of each kind."""
    return {
        "query": spec.hidden_size,
        "output": spec.num_heads * spec.head_size,
        "down": spec.intermediate_size,
    }
