"""A TensorRT network computed with NumPy, so that what a lowering built can be checked on a machine without a GPU.

`Interpreter(network, trt)` decodes an `INetworkDefinition` once, weights included, and `run` computes it. It follows
TensorRT's documented meaning of each layer and knows nothing of the code that built the network. A layer it does not
know raises `NotImplementedError` when the network is opened.

Numbers. The network is strongly typed: a layer computes in float32 and its result is rounded to the type that the
network gives the output tensor (half and bfloat16 to nearest even, FP8 E4M3 saturating). Only what a layer gives is
rounded, nothing inside it: the scores of an attention stay float32, whatever a fused kernel does with them. With
`precise=True` half and bfloat16 are not rounded at all, while quantisation still is: what is then left of a difference
is a wrong network, or the quantisation.

What can be read back from a network definition (tensorrt_rtx 1.7):

- `network.get_layer(i)` gives a bare `ILayer`. Setting its `__class__` to the class that belongs to `layer.type` opens
  every attribute, because all layer classes wrap the same pointer. `type` has to be read first: `IActivationLayer`
  shadows it with the kind of activation.
- Layers come in the order of their creation, which is not an order of execution: a layer's second input may be made
  after it. Inputs that are not set read as None.
- A constant's weights read as a flat NumPy view for FLOAT, HALF, INT8, INT32 and INT64. BF16, FP8 and INT4 read as a
  `Weights` object whose `numpy()` returns itself, so their bytes are reached through the pointer that the binding's
  object holds (see `constants`). Weights live in the memory of whoever built the network: they are copied here.
- `IShuffleLayer.reshape_dims` is None when it was never set and when it is the second input; permutations always have
  eight entries.
- An attention shows up as two layers, ATTENTION_INPUT (query, key, value, mask, quantisation scale, query lengths,
  key/value lengths, the unset ones None) and ATTENTION_OUTPUT; both have `attention`, the whole `IAttention`, with
  `causal_kind`, `norm_op`, `query_form`, ... `normalization_quantize_to_type` may not be read where it was not set.
- `block_shape` of a quantise or dequantise layer raises where it was not set: the blocks follow from the scale's shape.
- There is no RMS variant of `INormalizationLayer`: its attributes are axes, epsilon and num_groups.
- Asking for a shape makes TensorRT check the layer: types that do not fit, axes out of range and sizes that cannot be
  right raise, so such a network does not open. Sizes known only at run time are checked when the network runs.
"""

from tests.support.tensorrt.trt_interpreter.interpreter import Interpreter

__all__ = ["Interpreter"]
