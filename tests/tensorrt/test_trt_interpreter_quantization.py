"""The interpreter's quantise and dequantise layers, against torch's FP8 and loops over blocks and channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_networks import BF16, FP8, SmallNetwork

pytestmark = pytest.mark.tensorrt


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantized(x: Array, scale: Array, target: str, axis: int | None = None, source: str = "FLOAT") -> Array:
    """x quantised to `target` and scaled back, in the type of x; the scale is of that type too."""
    network = SmallNetwork()
    scales = network.constant(scale, source)
    types = network.trt.DataType
    quantize = network.add.add_quantize(network.input("x", source, *x.shape), scales, getattr(types, target))
    back = network.add.add_dequantize(quantize.get_output(0), scales, getattr(types, source))
    if axis is not None:
        quantize.axis = back.axis = axis
    network.output(back.get_output(0))
    return network.run({"x": x})


def torch_fp8(x: Array) -> Array:
    """The nearest E4M3 numbers, saturating."""
    return torch.from_numpy(x).clamp(-448, 448).to(torch.float8_e4m3fn).to(torch.float32).numpy()


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30), st.sampled_from([1.0, 0.1, 7.0]))
def test_fp8_of_a_tensor_is_torchs_and_saturates(numbers: list[float], scale: float) -> None:
    x, one = np.array(numbers, np.float32), np.float32(scale)
    np.testing.assert_array_equal(quantized(x, one, "FP8"), torch_fp8(x / one) * one)


@pytest.mark.parametrize("axis", [0, 1])
def test_fp8_a_channel_divides_along_its_axis(axis: int) -> None:
    x, scale = normal(4, 4), np.array([0.01, 0.1, 1, 10], np.float32)
    actual = quantized(x, scale, "FP8", axis)
    for channel, one in enumerate(scale):
        row = np.take(x, channel, axis)
        np.testing.assert_array_equal(np.take(actual, channel, axis), torch_fp8(row / one) * one)
    assert not np.array_equal(actual, quantized(x, scale, "FP8", 1 - axis))


def test_scales_without_an_axis_or_with_the_wrong_one_raise() -> None:
    with pytest.raises(ValueError, match=r"has 4 scales along axis -1 of \(4, 4\)"):
        quantized(normal(4, 4), np.ones(4, np.float32), "FP8")


def test_int8_rounds_half_to_even_and_clamps() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 127.4, 1e4, -1e4], np.float32)
    np.testing.assert_array_equal(quantized(x, np.float32(1), "INT8"), [0, 2, 2, -0.0, 127, 127, -128])
    np.testing.assert_array_equal(quantized(x * 2, np.float32(2), "INT8"), [0, 4, 4, -0.0, 254, 254, -256])


def dequantized(
    values: Array, scale: Array, dtype: str = "INT4", target: str = "FLOAT", axis: int | None = None
) -> Array:
    """Constant weights as a dequantise layer gives them; the scale's type is the target's."""
    network = SmallNetwork()
    weights, scales = network.constant(values, dtype), network.constant(scale, target)
    layer = network.add.add_dequantize(weights, scales, getattr(network.trt.DataType, target))
    if axis is not None:
        layer.axis = axis
    network.output(layer.get_output(0))
    return network.run()


@pytest.mark.parametrize("axis", [0, 1])
def test_int4_blocks_have_a_scale_each(axis: int) -> None:
    values = np.random.default_rng(0).integers(-8, 8, (8, 12))
    blocks = (2, 12) if axis == 0 else (8, 3)  # four numbers a block
    scale = np.abs(normal(*blocks)) + 0.01
    actual = dequantized(values, scale)
    for i, j in np.ndindex(8, 12):
        block = (i // 4, j) if axis == 0 else (i, j // 4)
        assert actual[i, j] == np.float32(values[i, j]) * scale[block]


def test_scales_of_blocks_that_do_not_divide_the_data_do_not_open(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="TensorRT refuses layer"):
        dequantized(np.ones((8, 6), np.int64), np.ones((2, 2), np.float32))
    assert "Only a single blocking dimension" in "".join(capfd.readouterr())


def test_fp8_weights_a_channel() -> None:
    values = normal(3, 4).astype(FP8)
    actual = dequantized(values, np.array([0.5, 2, 3], np.float32), "FP8", axis=0)
    np.testing.assert_array_equal(actual, values.astype(np.float32) * [[0.5], [2], [3]])


@pytest.mark.parametrize(("target", "native"), [("HALF", np.dtype(np.float16)), ("BF16", BF16)])
def test_dequantised_weights_are_rounded_to_their_type(target: str, native: np.dtype[Any]) -> None:
    values, scale = np.arange(-8, 8).reshape(4, 4), np.full((4, 1), 0.3, np.float32).astype(native)
    actual = dequantized(values, scale, target=target)
    assert actual.dtype == native
    np.testing.assert_array_equal(actual, (values.astype(np.float32) * scale.astype(np.float32)).astype(native))


def test_a_precise_interpreter_still_quantises() -> None:
    network = SmallNetwork()
    x, scale = network.input("x", "HALF", -1), network.constant(np.float16(0.3))
    quantize = network.add.add_quantize(x, scale, network.trt.DataType.FP8).get_output(0)
    network.output(network.add.add_dequantize(quantize, scale, network.trt.DataType.HALF).get_output(0))
    values, one = normal(50), np.float32(np.float16(0.3))
    actual = network.run({"x": values}, precise=True)
    np.testing.assert_array_equal(actual, torch_fp8(values / one) * one)
    assert not np.array_equal(actual, actual.astype(np.float16).astype(np.float32))


def test_a_zero_point_may_only_be_zero(capfd: pytest.CaptureFixture[str]) -> None:
    for zero in (0, 1):
        network = SmallNetwork()
        scale = network.constant(np.float32(2))
        layer = network.add.add_dequantize(network.constant(np.array([1, 2]), "INT8"), scale, network.trt.float32)
        layer.set_input(2, network.constant(np.array(zero), "INT8"))
        network.output(layer.get_output(0))
        if zero:
            with pytest.raises(ValueError, match=r"zero point that is not zero|TensorRT refuses"):
                network.run()
        else:
            np.testing.assert_array_equal(network.run(), [2, 4])
    capfd.readouterr()


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_raises(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"has a scale of {scale}, which is not above 0"):
        dequantized(np.ones((2, 2), np.int64), np.float32(scale))


def linear(num_rows: int, transposed: bool) -> tuple[Array, Array]:
    """x @ W as an int4 linear layer, W stored [K, N] or, transposed, [N, K], with blocks of 4 along axis K.

    Returns what the network gives and what the dequantised weights give.
    """
    network, values = SmallNetwork(), np.random.default_rng(1).integers(-8, 8, (8, 6))
    scale = np.abs(normal(2, 6)) + 0.1
    full = values * np.repeat(scale, 4, axis=0)
    stored, scales = (values.T, scale.T) if transposed else (values, scale)
    layer = network.add.add_dequantize(
        network.constant(stored, "INT4"), network.constant(np.ascontiguousarray(scales)), network.trt.float32
    )
    operation = network.trt.MatrixOperation
    side = operation.TRANSPOSE if transposed else operation.NONE
    product = network.add.add_matrix_multiply(
        network.input("x", "FLOAT", -1, 8), operation.NONE, layer.get_output(0), side
    )
    network.output(product.get_output(0))
    x = normal(num_rows, 8, seed=2)
    return network.run({"x": x}), np.asarray(x @ full)


@pytest.mark.parametrize("transposed", [False, True])
def test_an_int4_linear_layer(transposed: bool) -> None:
    actual, expected = linear(3, transposed)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
