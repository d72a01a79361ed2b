"""Attention over caches as long as a phone agent's: what lies beyond a row's own length changes nothing.

The networks are narrow and have one layer, their caches 8,192 and 25,600 positions. Beyond each row's length the cache
holds large finite numbers, as a slot that was used before may; the answers must be those over a cache with nothing
there, bit for bit, and those of a network whose cache ends where the row does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
from autoglm_export.tensorrt.attention import FORMS, Attention
from autoglm_export.tensorrt.profiles import attention_lengths_of

from tests.support.export.tiny_decoders import SPECS, random_weights
from tests.support.tensorrt.tensorrt_networks import define_network
from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.tensorrt.trt_interpreter.dtypes import native

pytestmark = pytest.mark.tensorrt

CAPACITIES = (8192, 25_600)
SPEC = dataclasses.replace(SPECS["glm4"], num_layers=1, num_heads=4, num_kv_heads=2, hidden_size=32)
WEIGHTS = random_weights(SPEC)
POISON = 6e4  # float16 holds it; a score of it is all that softmax sees
SIZES = (SPEC.num_kv_heads, SPEC.head_size)

Logits = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


def interpreter(precision: str, form: str, cache_length: int) -> Interpreter:
    defined = define_network(
        SPEC, WEIGHTS, precision, cache_length=cache_length, num_candidates=4, attention=form, texts=()
    )
    return Interpreter(defined.definition, trt)


def caches(network: Interpreter, lengths: list[int], cache_length: int, beyond: float) -> Arrays:
    """The same random keys and values of each row, whatever the capacity, and `beyond` from its length on."""
    found = {}
    for name in ("past_key_0", "past_value_0"):
        heads, size = SIZES
        cache = np.full((len(lengths), heads, cache_length, size), beyond, np.float32)
        for row, length in enumerate(lengths):
            random = np.random.default_rng([row, name == "past_key_0"])
            numbers = random.standard_normal((length, heads, size), np.float32)
            cache[row, :, :length] = numbers.transpose(1, 0, 2)
        found[name] = cache.astype(native(network.inputs[name].dtype))
    return found


def logits(
    network: Interpreter,
    lengths: list[int],
    cache_length: int,
    *,
    beyond: float,
    tokens: int = 1,
    keys: int | None = None,
) -> Logits:
    """Of `tokens` more of each row, which stands at its length before."""
    batch, starts = len(lengths), np.array(lengths, np.int32)
    inputs = {
        "token_ids": np.arange(batch * tokens, dtype=np.int32).reshape(batch, tokens) % SPEC.vocab_size,
        "position_ids": starts[:, None] + np.arange(tokens, dtype=np.int32),
        "write_indices": starts,
        "key_positions": np.arange(keys or cache_length, dtype=np.int32),
        "logit_indices": np.full((batch, 1), tokens - 1, np.int32),
        "inverse_temperature": np.ones((batch, 1), np.float32),
        "logit_factor": np.ones((batch, SPEC.vocab_size), np.float32),
        "logit_offset": np.zeros((batch, SPEC.vocab_size), np.float32),
    }
    return network.run(inputs | caches(network, lengths, cache_length, beyond), in_place=True)["logits"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_what_lies_beyond_a_row_changes_nothing(capacity: int, precision: str, form: str) -> None:
    network, lengths = interpreter(precision, form, capacity), [1, 7, 1000, capacity - 1]
    clean = logits(network, lengths, capacity, beyond=0.0)
    np.testing.assert_array_equal(logits(network, lengths, capacity, beyond=POISON), clean)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_row_is_answered_as_by_a_cache_that_ends_with_it(capacity: int, form: str) -> None:
    lengths, tokens = [1, 7, 1000], 3
    found = logits(interpreter("bf16", form, capacity), lengths, capacity, beyond=POISON, tokens=tokens)
    for row, length in enumerate(lengths):
        only = [0] * row + [length]
        exact = logits(interpreter("bf16", form, length + tokens), only, length + tokens, beyond=0.0, tokens=tokens)
        np.testing.assert_allclose(found[row], exact[row], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_fewest_positions_are_enough(form: str) -> None:
    capacity, lengths = 25_600, [1, 7, 250]
    network = interpreter("bf16", form, capacity)
    whole = logits(network, lengths, capacity, beyond=POISON)
    for keys in attention_lengths_of(capacity):
        np.testing.assert_allclose(
            logits(network, lengths, capacity, beyond=POISON, keys=keys), whole, rtol=0.02, atol=0.02
        )


# ---- a network that looks where it must not is caught


Mask = Callable[[Attention, Any, Any, int], Any]


def everywhere(attention: Attention, position_ids: Any, key_positions: Any, repeats: int) -> Any:
    seen, network = VISIBLE(attention, position_ids, key_positions, repeats), attention._network
    return network.binary("OR", seen, network.unary("NOT", seen))


def shifted(by: int) -> Mask:
    def mask(attention: Attention, position_ids: Any, key_positions: Any, repeats: int) -> Any:
        network = attention._network
        moved = network.binary("SUM", position_ids, network.constant("shift", np.full((1, 1), by, np.int32)))
        return VISIBLE(attention, moved, key_positions, repeats)

    return mask


def as_far_as_the_farthest(attention: Attention, position_ids: Any, key_positions: Any, repeats: int) -> Any:
    network = attention._network
    largest = network.reduce("MAX", network.cast(position_ids, np.float32), axis=0)
    none = network.binary("SUB", position_ids, position_ids)
    spread = network.binary("SUM", none, network.cast(largest, np.int32))
    return VISIBLE(attention, spread, key_positions, repeats)


VISIBLE = Attention._visible
BROKEN: dict[str, Mask] = {
    "no mask": everywhere,
    "one position too far": shifted(1),
    "one position too short": shifted(-1),
    "as far as the farthest row": as_far_as_the_farthest,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_mask_is_caught(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, lengths = 8192, [1, 7, 1000]
    right = logits(interpreter("bf16", form, capacity), lengths, capacity, beyond=POISON)
    monkeypatch.setattr(Attention, "_visible", BROKEN[name])
    wrong = logits(interpreter("bf16", form, capacity), lengths, capacity, beyond=POISON)
    assert np.abs(wrong - right).max() > 0.1
