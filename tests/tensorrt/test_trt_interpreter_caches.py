"""The interpreter's rotary embedding and cache update, alone and as a decoder has them with attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_networks import SmallNetwork

pytestmark = pytest.mark.tensorrt


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rotated(x: Array, angles: Array, positions: Array | None, interleaved: bool, dim: int) -> Array:
    """x [B, N, S, H] in float32; angles [positions, d / 2], or [B, S, d / 2] without positions."""
    network = SmallNetwork()
    tables = [network.constant(function(angles).astype(np.float32)) for function in (np.cos, np.sin)]
    shape = x.shape if positions is None else (-1, x.shape[1], -1, x.shape[3])
    layer = network.add.add_rotary_embedding(network.input("x", "FLOAT", *shape), *tables, interleaved, dim)
    inputs = {"x": x}
    if positions is not None:
        layer.set_input(3, network.input("positions", "INT32", -1, -1))
        inputs["positions"] = positions.astype(np.int32)
    network.output(layer.get_output(0))
    return network.run(inputs)


def turned(x: Array, angles: Array, interleaved: bool) -> Array:
    """Each pair of x [..., d] as a complex number, times exp(i angle)."""
    pairs = torch.from_numpy(x).unflatten(-1, (-1, 2) if interleaved else (2, -1))
    real, imaginary = pairs.unbind(-1 if interleaved else -2)
    product = torch.complex(real, imaginary) * torch.exp(1j * torch.from_numpy(angles))
    return torch.stack((product.real, product.imag), -1 if interleaved else -2).flatten(-2).numpy()


@given(st.booleans(), st.sampled_from([0, 2, 4, 8]), st.integers(0, 10**6))
def test_rotary_embedding_turns_pairs_by_the_angle_of_their_position(interleaved: bool, dim: int, seed: int) -> None:
    x, width = normal(2, 3, 5, 8, seed=seed), dim or 8
    angles = normal(20, width // 2, seed=seed + 1)
    positions = np.random.default_rng(seed).integers(0, 20, (2, 5))
    actual = rotated(x, angles, positions, interleaved, dim)
    expected = turned(x[..., :width], angles[positions][:, None], interleaved)
    np.testing.assert_allclose(actual[..., :width], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[..., width:], x[..., width:])


def test_rotary_embedding_without_positions_has_an_angle_for_each_token() -> None:
    x, angles = normal(2, 3, 4, 6), normal(2, 4, 3, seed=1)
    actual = rotated(x, angles, None, False, 0)
    np.testing.assert_allclose(actual, turned(x, angles[:, None], False), rtol=1e-5, atol=1e-6)


def test_the_two_orders_of_pairs_differ() -> None:
    x, angles, positions = normal(1, 1, 3, 8), normal(4, 4, seed=1), np.array([[1, 2, 3]])
    halves = rotated(x, angles, positions, False, 0)
    neighbours = rotated(x, angles, positions, True, 0)
    assert np.abs(halves - neighbours).max() > 0.1
    to_halves = [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_allclose(
        rotated(x[..., to_halves], angles, positions, False, 0), neighbours[..., to_halves], rtol=1e-5, atol=1e-6
    )


def test_a_position_that_the_tables_lack_raises() -> None:
    with pytest.raises(ValueError, match=r"positions 2 \.\.\. 4, its tables have 0 \.\.\. 3"):
        rotated(normal(1, 1, 2, 4), normal(4, 2), np.array([[2, 4]]), True, 0)


def cache_network(length: int = 6) -> SmallNetwork:
    """present = past with `update` written from `start` on"""
    network = SmallNetwork()
    past, update = network.input("past", "HALF", -1, 2, length, 3), network.input("update", "HALF", -1, 2, -1, 3)
    start = network.input("start", "INT32", -1)
    layer = network.add.add_kv_cache_update(past, update, start, network.trt.KVCacheMode.LINEAR)
    layer.name = "keys"
    network.output(layer.get_output(0), "present")
    return network


def cache_inputs(starts: list[int], tokens: int, length: int = 6) -> dict[str, Array]:
    rows = len(starts)
    return {
        "past": normal(rows, 2, length, 3).astype(np.float16),
        "update": normal(rows, 2, tokens, 3, seed=1).astype(np.float16),
        "start": np.array(starts, np.int32),
    }


@given(st.integers(1, 6), st.data())
def test_a_cache_update_writes_each_row_where_it_says(tokens: int, data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.integers(0, 6 - tokens), min_size=1, max_size=4))
    inputs = cache_inputs(starts, tokens)
    expected = inputs["past"].copy()
    for row, head, token in np.ndindex(len(starts), 2, tokens):
        expected[row, head, starts[row] + token] = inputs["update"][row, head, token]
    before = inputs["past"].copy()
    present = cache_network().interpreter().run(inputs)["present"]
    np.testing.assert_array_equal(present, expected)
    assert present.dtype == np.float16
    np.testing.assert_array_equal(inputs["past"], before)


def test_a_cache_update_in_place_writes_the_array_that_was_given() -> None:
    inputs = cache_inputs([4], 2)
    present = cache_network().interpreter().run(inputs, in_place=True)["present"]
    assert present is inputs["past"]
    np.testing.assert_array_equal(present[:, :, 4:], inputs["update"])


@pytest.mark.parametrize(("start", "tokens"), [(-1, 1), (6, 1), (5, 2)])
def test_writing_outside_of_the_cache_raises(start: int, tokens: int) -> None:
    with pytest.raises(ValueError, match=r"'keys' .* writes positions .* of row 1, outside of 0 \.\.\. 5"):
        cache_network().interpreter().run(cache_inputs([0, start], tokens))


def test_a_precise_cache_is_float32() -> None:
    inputs = cache_inputs([0], 1) | {"update": normal(1, 2, 1, 3)}
    interpreter = cache_network().interpreter(precise=True)
    present = interpreter.run(inputs)["present"]
    assert present.dtype == np.float32
    np.testing.assert_array_equal(present[:, :, :1], inputs["update"])
    np.testing.assert_array_equal(interpreter.run({**inputs, "past": present})["present"], present)
    with pytest.raises(ValueError, match="must be float32, not float16"):
        interpreter.run(inputs, in_place=True)


def test_a_cache_that_is_read_before_its_update_is_refused() -> None:
    network = cache_network()
    network.output(network.add.add_identity(network.add.get_input(0)).get_output(0), "stale")
    with pytest.raises(ValueError, match="the cache 'past' is read by"):
        network.interpreter()


def test_an_updated_cache_that_is_no_output_is_refused() -> None:
    network = SmallNetwork()
    past, start = network.input("past", "HALF", -1, 2, 6, 3), network.input("start", "INT32", -1)
    update = network.input("update", "HALF", -1, 2, -1, 3)
    layer = network.add.add_kv_cache_update(past, update, start, network.trt.KVCacheMode.LINEAR)
    network.output(network.add.add_identity(layer.get_output(0)).get_output(0))
    with pytest.raises(ValueError, match="not an input and an output of the network"):
        network.interpreter()


def close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


HEADS = (("query", 4), ("key", 2), ("value", 2))


def decoder(length: int = 12) -> SmallNetwork:
    """Rotary embedding, cache and attention as a decoder has them: query and new keys in, one output a token."""
    network = SmallNetwork()
    query, key, value = (network.input(name, "FLOAT", -1, heads, -1, 4) for name, heads in HEADS)
    positions, start, lengths = (
        network.input("positions", "INT32", -1, -1),
        network.input("start", "INT32", -1),
        network.input("lengths", "INT32", -1),
    )
    angles = np.outer(np.arange(length), [1.0, 0.1]).astype(np.float32)
    tables = [network.constant(np.cos(angles)), network.constant(np.sin(angles))]
    turned_ = []
    for tensor in (query, key):
        layer = network.add.add_rotary_embedding(tensor, *tables, True, 0)
        layer.set_input(3, positions)
        turned_.append(layer.get_output(0))
    caches = []
    for name, update in (("key", turned_[1]), ("value", value)):
        past = network.input(f"past_{name}", "FLOAT", -1, 2, length, 4)
        layer = network.add.add_kv_cache_update(past, update, start, network.trt.KVCacheMode.LINEAR)
        network.output(layer.get_output(0), f"present_{name}")
        caches.append(layer.get_output(0))
    attention = network.add.add_attention_v2(
        turned_[0], *caches, network.trt.AttentionNormalizationOp.SOFTMAX, network.trt.CausalMaskKind.LOWER_RIGHT
    )
    attention.key_value_lengths = lengths
    network.output(attention.get_output(0))
    return network


def fed(interpreter: Interpreter, tokens: dict[str, Array], chunks: list[int]) -> Array:
    """The outputs for tokens [1, N, S, 4], fed in `chunks` through caches that start as NaN."""
    caches = {f"past_{name}": np.full((1, 2, 12, 4), np.nan, np.float32) for name in ("key", "value")}
    outputs, start = [], 0
    for size in chunks:
        stop = start + size
        outputs.append(
            interpreter.run(
                {
                    **{name: x[:, :, start:stop] for name, x in tokens.items()},
                    **caches,
                    "positions": np.arange(start, stop, dtype=np.int32)[None],
                    "start": np.array([start], np.int32),
                    "lengths": np.array([stop], np.int32),
                },
                in_place=True,
            )["y"]
        )
        start = stop
    return np.concatenate(outputs, axis=2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 10**6))
def test_chunks_through_the_cache_give_what_the_whole_gives(sizes: list[int], seed: int) -> None:
    chunks = [size for i, size in enumerate(sizes) if sum(sizes[: i + 1]) <= 12]
    total = sum(chunks)
    tokens = {name: normal(1, heads, total, 4, seed=seed + heads) for name, heads in HEADS}
    interpreter = decoder().interpreter()
    close(fed(interpreter, tokens, chunks), fed(interpreter, tokens, [total]))
