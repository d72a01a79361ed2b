"""An `INetworkDefinition` opened into plain records; see the package docstring for what TensorRT lets one read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

# layer type -> (class that opens it, attributes that decide what it computes)
OPENED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "ACTIVATION": ("IActivationLayer", ("type", "alpha", "beta")),
    "ATTENTION_INPUT": ("IAttentionInputLayer", ()),
    "ATTENTION_OUTPUT": ("IAttentionOutputLayer", ()),
    "CAST": ("ICastLayer", ("to_type",)),
    "CONCATENATION": ("IConcatenationLayer", ("axis",)),
    "CONSTANT": ("IConstantLayer", ()),
    "DEQUANTIZE": ("IDequantizeLayer", ("axis",)),
    "ELEMENTWISE": ("IElementWiseLayer", ("op",)),
    "FILL": ("IFillLayer", ("shape", "operation", "alpha", "beta")),
    "GATHER": ("IGatherLayer", ("axis", "mode", "num_elementwise_dims")),
    "IDENTITY": ("IIdentityLayer", ()),
    "KV_CACHE_UPDATE": ("IKVCacheUpdateLayer", ("cache_mode", "update_form")),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", ("op0", "op1")),
    "NORMALIZATION": ("INormalizationLayer", ("axes", "epsilon", "num_groups", "is_v2")),
    "QUANTIZE": ("IQuantizeLayer", ("axis",)),
    "REDUCE": ("IReduceLayer", ("op", "axes", "keep_dims")),
    "ROTARY_EMBEDDING": ("IRotaryEmbeddingLayer", ("interleaved", "rotary_embedding_dim")),
    "SELECT": ("ISelectLayer", ()),
    "SHAPE": ("IShapeLayer", ()),
    "SHUFFLE": ("IShuffleLayer", ("first_transpose", "reshape_dims", "second_transpose", "zero_is_placeholder")),
    "SLICE": ("ISliceLayer", ("start", "shape", "stride", "mode", "axes")),
    "SOFTMAX": ("ISoftMaxLayer", ("axes",)),
    "SQUEEZE": ("ISqueezeLayer", ()),
    "TOPK": ("ITopKLayer", ("op", "k", "axes")),
    "UNARY": ("IUnaryLayer", ("op",)),
    "UNSQUEEZE": ("IUnsqueezeLayer", ()),
}
ATTENTION: Final = ("causal_kind", "norm_op", "query_form", "key_value_form", "num_ranks")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the network declares it; a dimension of -1 is known only when the network runs."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` may stand here."""
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(declared in (-1, size) for declared, size in pairs)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: enums are their names, dimensions and permutations tuples.

    `weights` is what TensorRT gives for a constant, None for other layers; it may point into the builder's memory.
    """

    name: str
    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    weights: Any = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the tensors that the layer reads."""
        return tuple(tensor.name for tensor in self.inputs if tensor is not None)

    def __str__(self) -> str:
        return f"layer {self.name!r} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Network:
    """A network's own inputs and outputs by name, and its layers in the order of their creation."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    layers: tuple[Layer, ...]


def open_network(network: Any, trt: Any) -> Network:
    """Reads every layer of `network`, whose module is `trt` (tensorrt or tensorrt_rtx).

    Raises NotImplementedError for a layer that is not interpreted, ValueError for a network that is not strongly typed
    and for a layer that TensorRT itself finds wrong.
    """
    if not network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
        raise ValueError("only a strongly typed network says what each tensor is rounded to: STRONGLY_TYPED is not set")
    layers = tuple(
        _layer(network.get_layer(i), trt) for i in range(network.num_layers)
    )  # first: it names what is wrong
    inputs = [_tensor(network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [_tensor(network.get_output(i)) for i in range(network.num_outputs)]
    return Network({tensor.name: tensor for tensor in inputs}, {tensor.name: tensor for tensor in outputs}, layers)


def _tensor(tensor: Any) -> Tensor:
    return Tensor(tensor.name, tensor.dtype.name, tuple(tensor.shape))


def _layer(layer: Any, trt: Any) -> Layer:
    kind = trt.ILayer.type.fget(layer).name
    if kind not in OPENED:
        raise NotImplementedError(f"layer {layer.name!r} is of type {kind}, which is not interpreted")
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    try:
        outputs = tuple(_tensor(layer.get_output(i)) for i in range(layer.num_outputs))
    except RuntimeError as refused:
        raise ValueError(f"TensorRT refuses layer {layer.name!r} ({kind}); its log says why") from refused
    layer.__class__ = getattr(trt, OPENED[kind][0])
    return Layer(
        name=layer.name,
        kind=kind,
        inputs=tuple(None if tensor is None else _tensor(tensor) for tensor in inputs),
        outputs=outputs,
        attributes=dict(_attributes(layer, kind)),
        weights=layer.weights if kind == "CONSTANT" else None,
    )


def _attributes(layer: Any, kind: str) -> Iterator[tuple[str, Any]]:
    for name in OPENED[kind][1]:
        yield name, _plain(getattr(layer, name))
    if kind == "ATTENTION_INPUT":
        for name in ATTENTION:
            yield name, _plain(getattr(layer.attention, name))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "__len__"):
        return tuple(value)
    return value.name
