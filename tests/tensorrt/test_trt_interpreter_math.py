"""The interpreter's arithmetic, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_interpreter.layers_math import ACTIVATION, ELEMENTWISE, UNARY
from tests.support.tensorrt.trt_networks import SmallNetwork

pytestmark = pytest.mark.tensorrt

X = np.linspace(-3.1, 3.3, 24, dtype=np.float32).reshape(2, 3, 4)


def close(actual: Array, expected: Any) -> None:
    wanted = np.asarray(expected)
    assert actual.shape == wanted.shape
    np.testing.assert_allclose(actual, wanted, rtol=2e-6, atol=2e-6)


def binary(operation: str, a: Array, b: Array, dtype: str = "FLOAT") -> Array:
    network = SmallNetwork()
    x, y = network.input("a", dtype, *([-1] * a.ndim)), network.input("b", dtype, *([-1] * b.ndim))
    op = getattr(network.trt.ElementWiseOperation, operation)
    network.output(network.add.add_elementwise(x, y, op).get_output(0))
    return network.run({"a": a, "b": b})


FLOAT_BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": torch.div,
    "FLOOR_DIV": torch.floor_divide,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}
BOOL_BINARY = {"AND": torch.logical_and, "OR": torch.logical_or, "XOR": torch.logical_xor}


@pytest.mark.parametrize("operation", FLOAT_BINARY)
def test_elementwise_operations_on_floats(operation: str) -> None:
    a, b = X, np.array([[[0.5], [-1.25], [X[0, 2, 1]]]], np.float32)
    actual = binary(operation, a, b)
    expected = FLOAT_BINARY[operation](torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert actual.dtype == expected.dtype
    close(actual, expected)


def test_power_and_what_the_tables_leave_out() -> None:
    close(binary("POW", np.abs(X), np.full((1, 1, 1), 1.5, np.float32)), np.abs(X) ** 1.5)
    assert {*FLOAT_BINARY, *BOOL_BINARY, "POW"} == ELEMENTWISE.keys()


@pytest.mark.parametrize("operation", BOOL_BINARY)
def test_elementwise_operations_on_booleans(operation: str) -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    expected = BOOL_BINARY[operation](torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(binary(operation, a, b, "BOOL"), expected)


def test_integers_divide_towards_zero_and_floor_divide_downwards() -> None:
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    np.testing.assert_array_equal(binary("DIV", a, b, "INT32"), [3, -3, -3, 3])
    np.testing.assert_array_equal(binary("FLOOR_DIV", a, b, "INT32"), [3, -4, -4, 3])
    assert binary("SUM", a, b, "INT32").dtype == np.int32


INSIDE_ONE, ABOVE_ONE, ABOVE_ZERO = X / 4, np.abs(X) + 1, np.abs(X) + 0.1
FLOAT_UNARY: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Array]] = {
    "EXP": (torch.exp, X),
    "LOG": (torch.log, ABOVE_ZERO),
    "SQRT": (torch.sqrt, ABOVE_ZERO),
    "RECIP": (torch.reciprocal, X),
    "ABS": (torch.abs, X),
    "NEG": (torch.neg, X),
    "SIN": (torch.sin, X),
    "COS": (torch.cos, X),
    "TAN": (torch.tan, INSIDE_ONE),
    "SINH": (torch.sinh, X),
    "COSH": (torch.cosh, X),
    "ASIN": (torch.asin, INSIDE_ONE),
    "ACOS": (torch.acos, INSIDE_ONE),
    "ATAN": (torch.atan, X),
    "ASINH": (torch.asinh, X),
    "ACOSH": (torch.acosh, ABOVE_ONE),
    "ATANH": (torch.atanh, INSIDE_ONE),
    "CEIL": (torch.ceil, X),
    "FLOOR": (torch.floor, X),
    "ERF": (torch.erf, X),
    "SIGN": (torch.sign, X),
    "ROUND": (torch.round, np.array([0.5, 1.5, -0.5, 2.4], np.float32)),
    "ISINF": (torch.isinf, np.array([1, np.inf, -np.inf], np.float32)),
    "ISNAN": (torch.isnan, np.array([1, np.inf, np.nan], np.float32)),
}


def one(x: Array, operation: str, dtype: str = "FLOAT") -> Array:
    network = SmallNetwork()
    op = getattr(network.trt.UnaryOperation, operation)
    network.output(network.add.add_unary(network.input("x", dtype, *([-1] * x.ndim)), op).get_output(0))
    return network.run({"x": x})


@pytest.mark.parametrize("operation", FLOAT_UNARY)
def test_unary_operations(operation: str) -> None:
    function, x = FLOAT_UNARY[operation]
    expected = function(torch.from_numpy(x)).numpy()
    actual = one(x, operation)
    assert actual.dtype == expected.dtype
    close(actual, expected)


def test_not_and_what_the_table_leaves_out() -> None:
    np.testing.assert_array_equal(one(np.array([True, False]), "NOT", "BOOL"), [False, True])
    assert {*FLOAT_UNARY, "NOT"} == UNARY.keys()


A, B = 0.75, 1.5
functional = torch.nn.functional
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "RELU": functional.relu,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
    "LEAKY_RELU": lambda x: functional.leaky_relu(x, A),
    "ELU": lambda x: functional.elu(x, A),
    "SELU": lambda x: B * functional.elu(x, A),
    "SOFTSIGN": functional.softsign,
    "SOFTPLUS": lambda x: A * torch.log(torch.exp(B * x) + 1),
    "CLIP": lambda x: torch.clamp(x, A, B),
    "HARD_SIGMOID": lambda x: torch.clamp(A * x + B, 0, 1),
    "SCALED_TANH": lambda x: A * torch.tanh(B * x),
    "THRESHOLDED_RELU": lambda x: functional.threshold(x, A, 0.0),
    "GELU_ERF": functional.gelu,
    "GELU_TANH": lambda x: functional.gelu(x, approximate="tanh"),
}


def activated(x: Array, kind: str) -> Array:
    network = SmallNetwork()
    layer = network.add.add_activation(
        network.input("x", "FLOAT", *([-1] * x.ndim)), getattr(network.trt.ActivationType, kind)
    )
    layer.alpha, layer.beta = A, B
    network.output(layer.get_output(0))
    return network.run({"x": x})


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str) -> None:
    close(activated(X, kind), ACTIVATIONS[kind](torch.from_numpy(X)).numpy())


def test_activations_are_all_there_and_sigmoid_saturates() -> None:
    assert ACTIVATIONS.keys() == ACTIVATION.keys()
    np.testing.assert_array_equal(activated(np.array([-1e4, 1e4], np.float32), "SIGMOID"), [0, 1])


def test_select_takes_the_second_where_the_first_is_true() -> None:
    network = SmallNetwork()
    condition = network.input("condition", "BOOL", -1, 1)
    chosen = network.add.add_select(
        condition, network.constant(np.ones((1, 3), np.float16)), network.input("x", "HALF", -1, 3)
    )
    network.output(chosen.get_output(0))
    actual = network.run({"condition": np.array([[True], [False]]), "x": np.full((2, 3), 7, np.float16)})
    np.testing.assert_array_equal(actual, [[1, 1, 1], [7, 7, 7]])
    assert actual.dtype == np.float16


def cast(x: Array, source: str, target: str) -> Array:
    network = SmallNetwork()
    layer = network.add.add_cast(network.input("x", source, -1), getattr(network.trt.DataType, target))
    network.output(layer.get_output(0))
    return network.run({"x": x})


def test_casts() -> None:
    x = np.array([-2.75, 0, 0.5, 2.75], np.float32)
    np.testing.assert_array_equal(cast(x, "FLOAT", "INT32"), [-2, 0, 0, 2])
    np.testing.assert_array_equal(cast(x, "FLOAT", "BOOL"), [True, False, True, True])
    np.testing.assert_array_equal(cast(np.array([3, -4], np.int32), "INT32", "FLOAT"), [3, -4])
    np.testing.assert_array_equal(cast(np.array([0.1], np.float16), "HALF", "FLOAT"), np.float16([0.1]))
    expected = torch.tensor([0.1, -77.3]).to(torch.bfloat16).to(torch.float32).numpy()
    actual = cast(np.array([0.1, -77.3], np.float32), "FLOAT", "BF16")
    np.testing.assert_array_equal(actual.astype(np.float32), expected)


def reduced(x: Array, operation: str, axes: tuple[int, ...], keep: bool) -> Array:
    network = SmallNetwork()
    mask = sum(1 << axis for axis in axes)
    op = getattr(network.trt.ReduceOperation, operation)
    layer = network.add.add_reduce(network.input("x", "FLOAT", *([-1] * x.ndim)), op, mask, keep)
    network.output(layer.get_output(0))
    return network.run({"x": x})


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(2,), (0,), (0, 2)])
def test_reductions(axes: tuple[int, ...], keep: bool) -> None:
    x = torch.from_numpy(X)
    close(reduced(X, "SUM", axes, keep), x.sum(axes, keepdim=keep))
    close(reduced(X, "AVG", axes, keep), x.mean(axes, keepdim=keep))
    close(reduced(X, "MAX", axes, keep), x.amax(axes, keepdim=keep))
    close(reduced(X, "MIN", axes, keep), x.amin(axes, keepdim=keep))
    close(reduced(X, "PROD", axes[:1], keep), x.prod(axes[0], keepdim=keep))


def multiplied(a: Array, b: Array, op0: str = "NONE", op1: str = "NONE") -> Array:
    network = SmallNetwork()
    operation = network.trt.MatrixOperation
    layer = network.add.add_matrix_multiply(
        network.input("a", "FLOAT", *([-1] * a.ndim)),
        getattr(operation, op0),
        network.input("b", "FLOAT", *b.shape),
        getattr(operation, op1),
    )
    network.output(layer.get_output(0))
    return network.run({"a": a, "b": b})


@given(
    st.sampled_from(["NONE", "TRANSPOSE"]),
    st.sampled_from(["NONE", "TRANSPOSE"]),
    st.sampled_from([(1, 1), (1, 4), (3, 1), (3, 4)]),
    st.sampled_from([(1, 1), (1, 4), (3, 1), (3, 4)]),
    st.integers(0, 10**6),
)
def test_matrices_multiply(op0: str, op1: str, lead0: tuple[int, ...], lead1: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.standard_normal((*lead0, *((2, 5) if op0 == "NONE" else (5, 2))), np.float32)
    b = random.standard_normal((*lead1, *((5, 6) if op1 == "NONE" else (6, 5))), np.float32)
    left = torch.from_numpy(a) if op0 == "NONE" else torch.from_numpy(a).mT
    right = torch.from_numpy(b) if op1 == "NONE" else torch.from_numpy(b).mT
    close(multiplied(a, b, op0, op1), torch.matmul(left, right))


def test_vectors_multiply() -> None:
    matrices, vectors = X, X[:, 0]  # [2, 3, 4], [2, 4]
    close(multiplied(matrices, vectors, op1="VECTOR"), np.einsum("bij,bj->bi", matrices, vectors))
    rows = X[:, :, 0]  # [2, 3]
    close(multiplied(rows, matrices, op0="VECTOR"), np.einsum("bi,bij->bj", rows, matrices))
    close(multiplied(rows, rows, op0="VECTOR", op1="VECTOR"), np.einsum("bi,bi->b", rows, rows))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax(axis: int) -> None:
    network = SmallNetwork()
    layer = network.add.add_softmax(network.input("x", "FLOAT", -1, -1, -1))
    layer.axes = 1 << axis
    network.output(layer.get_output(0))
    x = X * 50  # too large for exp without care
    close(network.run({"x": x}), torch.softmax(torch.from_numpy(x), axis))


def test_normalization_is_torchs_layer_norm() -> None:
    scale, bias = np.array([[[1, 2, -1, 0.5]]], np.float32), np.array([[[0, 1, 0, -1]]], np.float32)
    network = SmallNetwork()
    layer = network.add.add_normalization_v2(
        network.input("x", "FLOAT", -1, -1, 4), network.constant(scale), network.constant(bias), 1 << 2
    )
    layer.epsilon = 0.1
    network.output(layer.get_output(0))
    expected = functional.layer_norm(
        torch.from_numpy(X), (4,), torch.from_numpy(scale[0, 0]), torch.from_numpy(bias[0, 0]), 0.1
    )
    close(network.run({"x": X}), expected)


def test_normalization_in_groups_is_refused() -> None:
    network = SmallNetwork()
    ones = network.constant(np.ones((1, 4, 1), np.float32))
    layer = network.add.add_normalization_v2(network.input("x", "FLOAT", -1, 4, 3), ones, ones, 1 << 2)
    layer.num_groups = 2
    network.output(layer.get_output(0))
    with pytest.raises(NotImplementedError, match="2 groups"):
        network.run({"x": np.ones((1, 4, 3), np.float32)})
