"""The interpreter's layers that move, pick and count numbers, against NumPy, torch and loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_networks import SmallNetwork

pytestmark = pytest.mark.tensorrt


def numbered(*shape: int) -> Array:
    """1, 2, 3, ... so that every wrong place shows."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def shuffled(x: Array, **settings: Any) -> Array:
    network = SmallNetwork()
    layer = network.add.add_shuffle(network.input("x", "FLOAT", *([-1] * x.ndim)))
    for name, value in settings.items():
        setattr(layer, name, value)
    network.output(layer.get_output(0))
    return network.run({"x": x})


@given(st.permutations(range(3)), st.permutations(range(2)), st.integers(1, 3))
def test_shuffle_transposes_reshapes_and_transposes(first: list[int], second: list[int], rows: int) -> None:
    x = numbered(rows, 2, 5)
    actual = shuffled(x, first_transpose=first, reshape_dims=(0, -1), second_transpose=second)
    moved = torch.from_numpy(x).permute(first)
    np.testing.assert_array_equal(actual, moved.reshape(moved.shape[0], -1).permute(second).numpy())


def test_heads_are_split_and_joined_by_the_shuffles_of_a_decoder() -> None:
    x = numbered(2, 3, 8)  # [B, S, heads * size]
    split = shuffled(x, reshape_dims=(0, 0, 2, 4), second_transpose=(0, 2, 1, 3))
    for row, token, head in np.ndindex(2, 3, 2):
        np.testing.assert_array_equal(split[row, head, token], x[row, token, 4 * head : 4 * head + 4])
    joined = shuffled(split, first_transpose=(0, 2, 1, 3), reshape_dims=(0, 0, 8))
    np.testing.assert_array_equal(joined, x)
    assert not np.array_equal(shuffled(split, reshape_dims=(0, 3, 8)), x)  # without the transpose: other numbers


def test_a_shuffle_without_settings_changes_nothing() -> None:
    np.testing.assert_array_equal(shuffled(numbered(2, 3)), numbered(2, 3))


def test_a_reshape_may_come_from_a_tensor() -> None:
    network = SmallNetwork()
    x, like = network.input("x", "FLOAT", -1, -1), network.input("like", "FLOAT", -1, -1)
    layer = network.add.add_shuffle(x)
    layer.set_input(1, network.add.add_shape(like).get_output(0))
    layer.second_transpose = (1, 0)
    network.output(layer.get_output(0))
    actual = network.run({"x": numbered(2, 6), "like": numbered(4, 3)})
    np.testing.assert_array_equal(actual, numbered(2, 6).reshape(4, 3).T)


def test_squeeze_and_unsqueeze_take_their_axes_from_a_tensor() -> None:
    network = SmallNetwork()
    x = network.input("x", "FLOAT", -1, 3)
    wide = network.add.add_unsqueeze(x, network.constant(np.array([0, -1]))).get_output(0)
    network.output(wide, "wide")
    network.output(network.add.add_squeeze(wide, network.constant(np.array([0, 3]))).get_output(0))
    outputs = network.interpreter().run({"x": numbered(2, 3)})
    np.testing.assert_array_equal(outputs["wide"], numbered(2, 3)[None, :, :, None])
    np.testing.assert_array_equal(outputs["y"], numbered(2, 3))


def test_concatenation_joins_along_its_axis() -> None:
    network = SmallNetwork()
    a, b = network.input("a", "FLOAT", -1, 2), network.input("b", "FLOAT", -1, 3)
    layer = network.add.add_concatenation([a, b])
    layer.axis = 1
    network.output(layer.get_output(0))
    actual = network.run({"a": numbered(2, 2), "b": -numbered(2, 3)})
    np.testing.assert_array_equal(actual, [[1, 2, -1, -2, -3], [3, 4, -4, -5, -6]])


@given(st.data())
def test_slice_takes_a_count_from_a_start_by_a_stride(data: st.DataObject) -> None:
    x, start, count, stride, slices = numbered(4, 5, 6), [], [], [], []
    for length in x.shape:
        first, last = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, length - 1))
        step = data.draw(st.sampled_from([-2, -1] if last < first else [1, 2]))
        chosen = range(first, last + (1 if step > 0 else -1), step)
        start.append(first)
        count.append(len(chosen))
        stride.append(step)
        slices.append(list(chosen))
    network = SmallNetwork()
    network.output(network.add.add_slice(network.input("x", "FLOAT", 4, 5, 6), start, count, stride).get_output(0))
    np.testing.assert_array_equal(network.run({"x": x}), x[np.ix_(*slices)])


def test_a_slice_takes_its_count_from_a_tensor_and_may_not_leave_its_input() -> None:
    network = SmallNetwork()
    x, size = network.input("x", "FLOAT", -1, -1), network.input("like", "FLOAT", -1, -1)
    layer = network.add.add_slice(x, (1, 0), (0, 0), (1, 1))
    layer.set_input(2, network.add.add_shape(size).get_output(0))
    network.output(layer.get_output(0))
    np.testing.assert_array_equal(network.run({"x": numbered(3, 4), "like": numbered(2, 3)}), numbered(3, 4)[1:, :3])
    with pytest.raises(ValueError, match=r"reads 1 \.\.\. 3 of axis 0, which has 3 positions"):
        network.run({"x": numbered(3, 4), "like": numbered(3, 3)})


def test_a_slice_with_another_mode_is_refused() -> None:
    network = SmallNetwork()
    layer = network.add.add_slice(network.input("x", "FLOAT", 3), (1,), (4,), (1,))
    layer.mode = network.trt.SampleMode.WRAP
    network.output(layer.get_output(0))
    with pytest.raises(NotImplementedError, match="mode WRAP is not interpreted"):
        network.run({"x": numbered(3)})


def test_fill_counts_from_alpha_by_beta() -> None:
    network = SmallNetwork()
    layer = network.add.add_fill((4,), network.trt.FillOperation.LINSPACE, network.trt.int32)
    layer.alpha, layer.beta = 2, 3
    network.output(layer.get_output(0))
    result = network.run()
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, [2, 5, 8, 11])


def test_fill_takes_shape_start_and_steps_from_tensors() -> None:
    network = SmallNetwork()
    layer = network.add.add_fill((1, 1), network.trt.FillOperation.LINSPACE, network.trt.int64)
    layer.set_input(0, network.add.add_shape(network.input("like", "FLOAT", -1, -1)).get_output(0))
    layer.set_input(1, network.constant(np.int64(5)))
    layer.set_input(2, network.constant(np.array([10, 1])))
    network.output(layer.get_output(0))
    np.testing.assert_array_equal(network.run({"like": numbered(2, 3)}), [[5, 6, 7], [15, 16, 17]])


def gathered(data: Array, indices: Array, mode: str, axis: int = 0, batched: int = 0) -> Array:
    network = SmallNetwork()
    table = network.input("data", "FLOAT", *data.shape)
    places = network.input("indices", "INT32", *([-1] * (indices.ndim - 1)), indices.shape[-1])
    layer = network.add.add_gather_v2(table, places, getattr(network.trt.GatherMode, mode))
    layer.num_elementwise_dims = batched
    if mode != "ND":
        layer.axis = axis
    network.output(layer.get_output(0))
    return network.run({"data": data, "indices": indices.astype(np.int32)})


@given(st.integers(0, 2), st.integers(0, 10**6))
def test_gather_picks_whole_slices_along_an_axis(axis: int, seed: int) -> None:
    data = numbered(3, 4, 5)
    indices = np.random.default_rng(seed).integers(0, data.shape[axis], (2, 3))
    actual = gathered(data, indices, "DEFAULT", axis)
    assert actual.shape == (*data.shape[:axis], 2, 3, *data.shape[axis + 1 :])
    moved, picked = np.moveaxis(data, axis, 0), np.moveaxis(actual, (axis, axis + 1), (0, 1))
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(picked[place], moved[indices[place]])


def test_gather_may_pair_rows_of_data_and_indices() -> None:
    data, indices = numbered(2, 4, 3), np.array([[3, 0], [1, 1]])
    expected = np.stack([data[0][[3, 0]], data[1][[1, 1]]])
    np.testing.assert_array_equal(gathered(data, indices, "DEFAULT", 1, batched=1), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_elements_is_torchs_gather(axis: int) -> None:
    data, indices = numbered(3, 3), np.array([[2, 0, 1], [1, 1, 0]] if axis == 0 else [[2, 0], [1, 1], [0, 2]])
    expected = torch.gather(torch.from_numpy(data), axis, torch.from_numpy(indices)).numpy()
    np.testing.assert_array_equal(gathered(data, indices, "ELEMENT", axis), expected)


def test_gather_nd_picks_one_token_of_each_row() -> None:
    hidden, last = numbered(3, 4, 2), np.array([[[2]], [[0]], [[3]]])  # [B, S, H], [B, 1, 1]
    actual = gathered(hidden, last, "ND", batched=1)
    np.testing.assert_array_equal(actual, hidden[[0, 1, 2], [2, 0, 3]][:, None])


def test_gather_nd_without_pairs_takes_whole_index_tuples() -> None:
    data, indices = numbered(2, 3, 2), np.array([[1, 2], [0, 0]])
    np.testing.assert_array_equal(gathered(data, indices, "ND"), np.stack([data[1, 2], data[0, 0]]))


@pytest.mark.parametrize("index", [-1, 3])
@pytest.mark.parametrize("mode", ["DEFAULT", "ND", "ELEMENT"])
def test_an_index_out_of_range_raises(index: int, mode: str) -> None:
    with pytest.raises(ValueError, match=r"of axis 0, which has 0 \.\.\. 2"):
        gathered(numbered(3, 1), np.array([[index]]), mode)


def top(x: Array, k: int, axis: int, operation: str = "MAX") -> tuple[Array, Array]:
    network = SmallNetwork()
    op = getattr(network.trt.TopKOperation, operation)
    layer = network.add.add_topk(network.input("x", "FLOAT", *([-1] * x.ndim)), op, k, 1 << axis)
    network.output(layer.get_output(0))
    network.output(layer.get_output(1), "places")
    outputs = network.interpreter().run({"x": x})
    return outputs["y"], outputs["places"]


@given(st.integers(0, 2), st.sampled_from(["MAX", "MIN"]), st.integers(0, 10**6))
def test_topk_is_torchs_topk(axis: int, operation: str, seed: int) -> None:
    x = np.random.default_rng(seed).permutation(60).reshape(3, 4, 5).astype(np.float32)
    values, places = top(x, 3, axis, operation)
    expected = torch.topk(torch.from_numpy(x), 3, axis, largest=operation == "MAX")
    assert places.dtype == np.int32
    np.testing.assert_array_equal(values, expected.values.numpy())
    np.testing.assert_array_equal(places, expected.indices.numpy())


def test_topk_puts_the_lower_index_first_among_equals_and_can_rank_bans() -> None:
    values, places = top(np.array([[1, -np.inf, 3, 1, 3, 1]], np.float32), 4, 1)
    np.testing.assert_array_equal(values, [[3, 3, 1, 1]])
    np.testing.assert_array_equal(places, [[2, 4, 0, 3]])
    np.testing.assert_array_equal(top(np.array([[-np.inf, 2, -np.inf]], np.float32), 2, 1)[1], [[1, 0]])


def test_topk_of_more_than_there_are_raises() -> None:
    with pytest.raises(ValueError, match="asks for 3 of 2 numbers"):
        top(numbered(1, 2), 3, 1)
