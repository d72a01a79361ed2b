"""The interpreter of TensorRT networks itself: reading a network back, planning it, and refusing what it cannot
know."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter import Interpreter, dtypes
from tests.support.tensorrt.trt_interpreter.compute import COMPUTE, computed
from tests.support.tensorrt.trt_interpreter.layers import Inputs
from tests.support.tensorrt.trt_interpreter.network import OPENED, Layer, Network, Tensor
from tests.support.tensorrt.trt_interpreter.plan import planned
from tests.support.tensorrt.trt_networks import BF16, FP8, SmallNetwork, packed_int4, tensorrt

pytestmark = pytest.mark.tensorrt

FLOATS = np.array([[0.0, -1.5, 448.0], [0.0625, 3.140625, -240.0]], np.float32)


@pytest.mark.parametrize(
    "values",
    [
        FLOATS,
        FLOATS.astype(np.float16),
        FLOATS.astype(BF16),
        np.array([[-(2**31), 7], [0, 2**31 - 1]], np.int32),
        np.array([2**40, -3], np.int64),
        np.array(2.5, np.float32),
    ],
    ids=lambda values: f"{values.dtype}-{values.ndim}d",
)
def test_a_constant_reads_back_in_its_type_and_shape(values: dtypes.Array) -> None:
    network = SmallNetwork()
    network.output(network.constant(values))
    result = network.run()
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)


def test_an_fp8_constant_reads_back_as_e4m3() -> None:
    network, bits = SmallNetwork(), np.arange(256, dtype=np.uint8)
    values = bits[(bits & 0x7F) != 0x7F].view(FP8)  # all but the two NaN
    scaled = network.add.add_dequantize(network.constant(values), network.constant(np.float32(2)), network.trt.float32)
    network.output(scaled.get_output(0))
    np.testing.assert_array_equal(network.run(), 2 * values.astype(np.float32))


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_an_int4_constant_reads_back_low_half_first(numbers: list[int]) -> None:
    network = SmallNetwork()
    constant = network.constant(np.array(numbers), "INT4")
    network.output(
        network.add.add_dequantize(constant, network.constant(np.float32(1)), network.trt.float32).get_output(0)
    )
    np.testing.assert_array_equal(network.run(), numbers)


def test_int4_numbers_are_packed_low_half_first() -> None:
    np.testing.assert_array_equal(packed_int4(np.array([1, 2, -8, -1])), [0x21, 0xF8])


def test_layers_are_computed_in_the_order_of_their_needs_and_not_of_their_making() -> None:
    network = SmallNetwork()
    x = network.input("x", "FLOAT", -1, 3)
    late = network.add.add_elementwise(x, x, network.trt.ElementWiseOperation.SUM)
    negative = network.add.add_unary(x, network.trt.UnaryOperation.NEG).get_output(0)
    late.set_input(1, network.add.add_unary(negative, network.trt.UnaryOperation.ABS).get_output(0))
    network.output(late.get_output(0))
    values = np.array([[1, -2, 3]], np.float32)
    np.testing.assert_array_equal(network.run({"x": values}), values + np.abs(values))


def test_what_follows_from_weights_alone_is_computed_once() -> None:
    network = SmallNetwork()
    doubled = network.add.add_elementwise(
        network.constant(FLOATS),
        network.constant(np.full((1, 1), 2, np.float32)),
        network.trt.ElementWiseOperation.PROD,
    )
    x = network.input("x", "FLOAT", -1, 3)
    network.output(
        network.add.add_elementwise(x, doubled.get_output(0), network.trt.ElementWiseOperation.SUM).get_output(0)
    )
    interpreter = network.interpreter()
    assert [step.layer.kind for step in interpreter._plan.steps] == ["ELEMENTWISE"]
    assert interpreter._plan.constants.keys() == {doubled.get_output(0).name}
    np.testing.assert_array_equal(interpreter.run({"x": np.ones((2, 3), np.float32)})["y"], 2 * FLOATS + 1)


def test_an_intercept_decides_what_the_layers_of_a_run_compute_with() -> None:
    network = SmallNetwork()
    x, operation = network.input("x", "FLOAT", 2), network.trt.UnaryOperation
    weights = network.add.add_unary(network.constant(np.array([1, 2], np.float32)), operation.NEG).get_output(0)
    last = network.add.add_elementwise(x, weights, network.trt.ElementWiseOperation.SUM)
    last.name = "last"
    network.output(last.get_output(0))
    asked = []

    def intercept(layer: Layer, inputs: Inputs) -> Inputs:
        asked.append(layer.name)
        return np.array([10, 20], np.float32), *inputs[1:]

    outputs = Interpreter(network.add, network.trt, intercept=intercept).run({"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [9, 18])
    assert asked == ["last"], "what follows from weights alone is no part of a run"


def test_weights_are_copied_when_the_network_is_opened() -> None:
    network = SmallNetwork()
    network.output(network.constant(FLOATS))
    interpreter = network.interpreter()
    for array in network._weights:
        array[...] = 0
    np.testing.assert_array_equal(interpreter.run({})["y"], FLOATS)


def test_a_tensor_that_is_an_output_and_is_read_is_both() -> None:
    network = SmallNetwork()
    x = network.input("x", "FLOAT", 2)
    inner = network.add.add_unary(x, network.trt.UnaryOperation.NEG).get_output(0)
    network.output(inner, "inner")
    network.output(network.add.add_unary(inner, network.trt.UnaryOperation.NEG).get_output(0))
    given_ = np.array([1, 2], np.float32)
    outputs = network.interpreter().run({"x": given_})
    np.testing.assert_array_equal(outputs["inner"], -given_)
    np.testing.assert_array_equal(outputs["y"], given_)


def passing(dtype: str = "FLOAT", *shape: int) -> SmallNetwork:
    """y = x"""
    network = SmallNetwork()
    network.output(network.add.add_identity(network.input("x", dtype, *shape)).get_output(0))
    return network


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs are \['x'\], given were \[\]"),
        ({"x": np.ones((1, 3), np.float32), "z": np.ones(1, np.float32)}, r"given were \['x', 'z'\]"),
        ({"x": np.ones((1, 4), np.float32)}, r"declared \(-1, 3\), given was \(1, 4\)"),
        ({"x": np.ones((3,), np.float32)}, r"declared \(-1, 3\), given was \(3,\)"),
        ({"x": np.ones((1, 3), np.float16)}, "declared FLOAT, given was float16"),
    ],
)
def test_inputs_that_the_network_does_not_declare_are_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        passing("FLOAT", -1, 3).run(inputs)


def test_a_layer_that_is_not_interpreted_is_named_when_the_network_is_opened() -> None:
    network = SmallNetwork()
    scan = network.add.add_cumulative(
        network.input("x", "FLOAT", 3), network.constant(np.int64(0)), network.trt.CumulativeOperation.SUM, False, False
    )
    scan.name = "running_total"
    network.output(scan.get_output(0))
    with pytest.raises(NotImplementedError, match="'running_total' is of type CUMULATIVE"):
        network.interpreter()


def test_every_layer_type_is_computed_or_refused_by_name() -> None:
    known = set(tensorrt().LayerType.__members__)
    assert OPENED.keys() <= known
    assert COMPUTE.keys() | {"CONSTANT"} == OPENED.keys()


def test_a_layer_that_tensorrt_refuses_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    network = SmallNetwork()
    x, half = network.input("x", "FLOAT", 3), network.input("half", "HALF", 3)
    mixed = network.add.add_elementwise(x, half, network.trt.ElementWiseOperation.SUM)
    mixed.name = "mixed"
    network.add.mark_output(mixed.get_output(0))
    with pytest.raises(ValueError, match=r"refuses layer 'mixed' \(ELEMENTWISE\)"):
        network.interpreter()
    assert "must have same input types" in "".join(capfd.readouterr())


def test_a_result_that_is_not_a_number_names_its_layer() -> None:
    network = SmallNetwork()
    root = network.add.add_unary(network.input("x", "FLOAT", 2), network.trt.UnaryOperation.SQRT)
    root.name = "root"
    network.output(root.get_output(0))
    with pytest.raises(ValueError, match=r"'root' \(UNARY\) gives NaN"):
        network.run({"x": np.array([4, -1], np.float32)})
    np.testing.assert_array_equal(network.run({"x": np.array([4, np.inf], np.float32)}), [2, np.inf])


def test_a_result_of_another_shape_than_declared_names_its_layer() -> None:
    x, y = Tensor("x", "FLOAT", (-1, 3)), Tensor("y", "FLOAT", (-1, 4))
    layer = Layer("copy", "IDENTITY", (x,), (y,), {})
    with pytest.raises(ValueError, match=r"'copy' \(IDENTITY\) gives \(2, 3\) where the network declares \(-1, 4\)"):
        computed(layer, {"x": FLOATS}, precise=False)


def identities(*pairs: tuple[str, str]) -> Network:
    """A network from input `x` to output `y` that copies tensors, each pair from its first to its second."""
    tensors = {name: Tensor(name, "FLOAT", (3,)) for name in ("x", "y", *sum(pairs, ()))}
    layers = [Layer(f"{a}-{b}", "IDENTITY", (tensors[a],), (tensors[b],), {}) for a, b in pairs]
    return Network({"x": tensors["x"]}, {"y": tensors["y"]}, tuple(layers))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("x", "y"), ("x", "y")], "gives 'y', which is there already"),
        ([("y", "x")], "gives 'x', which is there already"),
        ([("z", "y")], "no layer gives 'z'"),
        ([("x", "z")], "no layer gives 'y'"),
        ([("a", "b"), ("b", "a"), ("b", "y")], "reads what it gives"),
    ],
)
def test_tensors_that_come_from_nowhere_twice_or_themselves_are_refused(
    pairs: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(identities(*pairs), lambda layer, values: computed(layer, values, False))


def test_layers_that_no_output_needs_are_left_out() -> None:
    plan = planned(identities(("x", "a"), ("a", "y"), ("a", "b")), lambda layer, values: computed(layer, values, False))
    assert [step.layer.name for step in plan.steps] == ["x-a", "a-y"]
    assert [step.done_with for step in plan.steps] == [("x",), ("a",)]


def thirds(dtype: str) -> SmallNetwork:
    """y = (x / 3) * 3, each result in `dtype`"""
    network = SmallNetwork()
    operation, three = network.trt.ElementWiseOperation, network.constant(np.array([3]), dtype)
    third = network.add.add_elementwise(network.input("x", dtype, -1), three, operation.DIV).get_output(0)
    network.output(third, "third")
    network.output(network.add.add_elementwise(third, three, operation.PROD).get_output(0))
    return network


@pytest.mark.parametrize(("dtype", "native"), [("HALF", np.dtype(np.float16)), ("BF16", BF16)])
def test_each_result_is_rounded_to_the_type_of_its_tensor(dtype: str, native: np.dtype[Any]) -> None:
    x = np.array([1, 2, 5, 7, 100, 10000], np.float32).astype(native)
    outputs = thirds(dtype).interpreter().run({"x": x})
    third = (x.astype(np.float32) / 3).astype(native)
    assert outputs["third"].dtype == outputs["y"].dtype == native
    np.testing.assert_array_equal(outputs["third"], third)
    np.testing.assert_array_equal(outputs["y"], (third.astype(np.float32) * 3).astype(native))


@pytest.mark.parametrize(("dtype", "native"), [("HALF", np.dtype(np.float16)), ("BF16", BF16)])
def test_a_precise_interpreter_keeps_float32_throughout(dtype: str, native: np.dtype[Any]) -> None:
    x = np.array([1, 2, 5, 7, 100], native)
    outputs = thirds(dtype).interpreter(precise=True).run({"x": x})
    assert outputs["third"].dtype == np.float32
    np.testing.assert_array_equal(outputs["third"], x.astype(np.float32) / np.float32(3))
    assert not np.array_equal(outputs["third"], outputs["third"].astype(native).astype(np.float32))


def test_what_is_too_large_for_half_becomes_infinite() -> None:
    network = SmallNetwork()
    network.output(network.add.add_cast(network.input("x", "FLOAT", 3), network.trt.float16).get_output(0))
    result = network.run({"x": np.array([65519, 65520, -1e6], np.float32)})
    np.testing.assert_array_equal(result, np.array([65504, np.inf, -np.inf], np.float16))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_bfloat16_is_rounded_to_nearest_even(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(dtypes.typed(x, "BF16", precise=False), nearest)


def test_a_type_that_is_not_held_is_named() -> None:
    with pytest.raises(NotImplementedError, match="tensors of type FP4 are not interpreted"):
        dtypes.native("FP4")
    assert dtypes.native("BF16") == ml_dtypes.bfloat16
