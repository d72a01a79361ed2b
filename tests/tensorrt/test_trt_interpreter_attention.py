"""The interpreter's attention, against torch and loops."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_networks import BF16, SmallNetwork

pytestmark = pytest.mark.tensorrt

HALF = np.dtype(np.float16)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def attended(
    query: Array,
    key: Array,
    value: Array,
    kind: str = "NONE",
    lengths: list[int] | None = None,
    mask: Array | None = None,
    dtype: str = "FLOAT",
) -> Array:
    """Attention over [B, N, tokens, H] arrays."""
    network = SmallNetwork()
    arrays = {"query": query, "key": key, "value": value}
    tensors = [network.input(name, dtype, -1, x.shape[1], -1, x.shape[3]) for name, x in arrays.items()]
    attention = network.add.add_attention_v2(
        *tensors, network.trt.AttentionNormalizationOp.SOFTMAX, getattr(network.trt.CausalMaskKind, kind)
    )
    if lengths is not None:
        attention.key_value_lengths = network.input("lengths", "INT32", -1)
        arrays["lengths"] = np.array(lengths, np.int32)
    if mask is not None:
        attention.mask = network.input("mask", "BOOL" if mask.dtype == np.bool_ else dtype, *mask.shape[:2], -1, -1)
        arrays["mask"] = mask
    network.output(attention.get_output(0))
    return network.run(arrays)


def torch_attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """torch's, without its scale; mask is True where a query may look, or is added."""
    tensors = [torch.from_numpy(x) for x in (query, key, value)]
    bias = None if mask is None else torch.from_numpy(mask)
    return torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=bias, scale=1.0, enable_gqa=True
    ).numpy()


def some_attention(rows: int, heads: int, groups: int, queries: int, keys: int, seed: int = 0) -> tuple[Array, ...]:
    query = normal(rows, heads * groups, queries, 4, seed=seed)
    return query, normal(rows, heads, keys, 4, seed=seed + 1), normal(rows, heads, keys, 4, seed=seed + 2)


def close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))
def test_attention_without_a_mask(rows: int, heads: int, groups: int, queries: int, keys: int) -> None:
    arrays = some_attention(rows, heads, groups, queries, keys)
    close(attended(*arrays), torch_attention(*arrays))


def test_attention_does_not_scale_its_scores() -> None:
    query, key, value = some_attention(1, 1, 1, 2, 5)
    scaled = torch.nn.functional.scaled_dot_product_attention(*(torch.from_numpy(x) for x in (query, key, value)))
    assert np.abs(attended(query, key, value) - scaled.numpy()).max() > 0.01
    close(attended(query / 2, key, value), scaled.numpy())  # head size 4


def test_query_heads_share_a_key_head_with_their_neighbours() -> None:
    query, key, value = some_attention(1, 2, 3, 1, 4)
    actual = attended(query, key, value)
    for head in range(6):
        scores = query[0, head, 0] @ key[0, head // 3].T
        weights = np.exp(scores) / np.exp(scores).sum()
        close(actual[0, head, 0], weights @ value[0, head // 3])


@given(st.integers(1, 4), st.integers(0, 3), st.data())
def test_lower_right_lets_the_last_query_see_all_that_a_row_holds(
    queries: int, spare: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(queries, 7), min_size=1, max_size=3))
    query, key, value = some_attention(len(lengths), 2, 2, queries, 7 + spare)
    actual = attended(query, key, value, "LOWER_RIGHT", lengths)
    for row, length in enumerate(lengths):
        mask = np.arange(length)[None] <= np.arange(queries)[:, None] + length - queries
        one = slice(row, row + 1)
        close(actual[one], torch_attention(query[one], key[one, :, :length], value[one, :, :length], mask))


def test_upper_left_counts_from_the_first_key() -> None:
    query, key, value = some_attention(1, 1, 1, 3, 5)
    close(attended(query, key, value, "UPPER_LEFT"), torch_attention(query, key, value, np.tri(3, 5, dtype=bool)))


def test_the_mask_kinds_and_the_lengths_make_a_difference() -> None:
    arrays = some_attention(1, 1, 1, 3, 7)
    results = {
        (kind, length): attended(*arrays, kind, [length])
        for kind in ("NONE", "UPPER_LEFT", "LOWER_RIGHT")
        for length in (7, 5)
    }
    for kind in ("NONE", "UPPER_LEFT", "LOWER_RIGHT"):
        np.testing.assert_array_equal(attended(*arrays, kind), results[kind, 7])
    for one, other in combinations(results, 2):
        if {one[0], other[0]} != {"UPPER_LEFT"}:  # its three queries see three keys, however many there are
            assert np.abs(results[one] - results[other]).max() > 1e-3, (one, other)


def test_masks_are_boolean_or_added_and_broadcast() -> None:
    query, key, value = some_attention(2, 2, 1, 3, 5)
    allowed = normal(1, 2, 3, 5, seed=7) > -0.5
    allowed[..., 0] = True
    close(attended(query, key, value, mask=allowed), torch_attention(query, key, value, allowed))
    added = normal(2, 1, 3, 5, seed=8)
    added[0, 0, 1, 2] = -np.inf
    close(attended(query, key, value, mask=added), torch_attention(query, key, value, added))


def test_what_lies_beyond_the_lengths_is_not_read() -> None:
    query, key, value = some_attention(2, 1, 2, 2, 6)
    expected = attended(query, key, value, "LOWER_RIGHT", [3, 5])
    for array in (key, value):
        array[0, :, 3:] = np.nan
        array[1, :, 5:] = np.nan
    np.testing.assert_array_equal(attended(query, key, value, "LOWER_RIGHT", [3, 5]), expected)
    with pytest.raises(ValueError, match="reads the key at position 3 of row 0, which was never written"):
        attended(query, key, value, "LOWER_RIGHT", [4, 5])
    with pytest.raises(ValueError, match="was never written"):
        attended(query, key, value, "LOWER_RIGHT")


def test_what_a_mask_hides_is_not_read() -> None:
    query, key, value = some_attention(1, 2, 1, 3, 5)
    allowed = np.ones((1, 1, 3, 5), np.bool_)
    allowed[..., 2] = False
    expected = torch_attention(query, key, value, allowed)
    key[:, :, 2] = value[:, :, 2] = np.nan
    close(attended(query, key, value, mask=allowed), expected)


@pytest.mark.parametrize("length", [0, 7])
def test_lengths_that_the_keys_do_not_have_raise(length: int) -> None:
    with pytest.raises(ValueError, match=rf"reads {length} keys of row 0, not 1 \.\.\. 6"):
        attended(*some_attention(1, 1, 1, 1, 6), "LOWER_RIGHT", [length])


def test_a_query_that_sees_no_key_raises() -> None:
    with pytest.raises(ValueError, match="a query of row 0 that sees none of 2 keys"):
        attended(*some_attention(1, 1, 1, 3, 6), "LOWER_RIGHT", [2])


@pytest.mark.parametrize(("dtype", "native"), [("HALF", HALF), ("BF16", BF16)])
def test_attention_is_rounded_once_at_its_end(dtype: str, native: np.dtype[Any]) -> None:
    arrays = [x.astype(native) for x in some_attention(2, 2, 2, 3, 5)]
    actual = attended(*arrays, "LOWER_RIGHT", dtype=dtype)
    full = attended(*(x.astype(np.float32) for x in arrays), "LOWER_RIGHT")
    assert actual.dtype == native
    np.testing.assert_array_equal(actual, full.astype(native))


def test_packed_attention_is_refused() -> None:
    network = SmallNetwork()
    query, lengths = network.input("query", "HALF", -1, 2, 8), network.input("lengths", "INT32", -1)
    key, value = (network.input(name, "HALF", -1, 2, -1, 8) for name in ("key", "value"))
    trt = network.trt
    attention = network.add.add_attention_v2(
        query, key, value, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    )
    attention.query_form, attention.query_lengths = trt.AttentionIOForm.PACKED_NHD, lengths
    network.output(attention.get_output(0))
    arrays = {name: np.ones((1, 2, 3, 8), np.float16) for name in ("key", "value")}
    with pytest.raises(NotImplementedError, match="PACKED_NHD"):
        network.run(arrays | {"query": np.ones((3, 2, 8), np.float16), "lengths": np.array([0, 3], np.int32)})
