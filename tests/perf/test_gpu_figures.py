"""What a decode step must read, random weights of a shape, and what is said of samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from autoglm_export.auto_runtime.random_weights import RandomWeights
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_perf.gpu.samples import figure, time_each
from autoglm_perf.gpu.shapes import (
    Shape,
    cache_bytes_per_token,
    floor_ms,
    num_parameters,
    step_bytes,
    weight_bytes_read,
)

from tests.support.perf.gpu_fakes import TINY

GLM4_9B = Shape().spec(2048)


# ---- what a step must read


def test_the_shape_is_glm_4_9b() -> None:
    assert num_parameters(GLM4_9B) == pytest.approx(9.4e9, rel=0.002)
    assert GLM4_9B.num_heads * GLM4_9B.head_size == GLM4_9B.hidden_size


def test_the_cache_of_a_token_is_40_kib_at_glm_4_9b() -> None:
    assert cache_bytes_per_token(GLM4_9B, "fp16") == 2 * 40 * 2 * 128 * 2 == 40_960
    assert cache_bytes_per_token(GLM4_9B, "int4") == 40_960, "the cache is not quantised"


def test_a_step_reads_every_weight_once_but_the_embedding() -> None:
    spec = TINY.spec(64)
    attention = 64 * 64 + 2 * (32 * 64) + 64 * 64
    linear = 2 * (attention + 3 * 96 * 64) + 120 * 64
    norms = 2 * 4 * 64 + 64
    assert weight_bytes_read(spec, "fp16") == 2 * (linear + norms)
    head, up = 120 * 64, 2 * 96 * 64  # stay in two bytes, the up projections of the last 22 layers in fp8 only
    assert weight_bytes_read(spec, "fp8") == linear + head + up + 2 * norms
    assert weight_bytes_read(spec, "int4") == round((linear - head) * (0.5 + 2 / 128) + 2 * (head + norms))
    assert weight_bytes_read(spec, "fp32") == 4 * (linear + norms)


def test_a_tied_embedding_is_read_as_the_output_layer() -> None:
    untied = TINY.spec(64)
    tied = dataclasses.replace(untied, tied_embeddings=True)
    assert weight_bytes_read(tied, "fp16") == weight_bytes_read(untied, "fp16")
    assert num_parameters(tied) < num_parameters(untied)


def test_the_floor_grows_with_batch_and_length_from_that_of_the_weights() -> None:
    weights = weight_bytes_read(GLM4_9B, "fp16")
    assert step_bytes(GLM4_9B, "fp16", batch=1, length=0) == weights
    assert step_bytes(GLM4_9B, "fp16", batch=16, length=512) == weights + 16 * 512 * 40_960
    assert floor_ms(weights, 1e12) == pytest.approx(17.55, abs=0.05), "17.5 GB at 1 TB/s"


# ---- random weights


def test_random_weights_are_those_that_the_spec_needs() -> None:
    spec = TINY.spec(64)
    weights = RandomWeights(spec)
    assert {name: weights[name].shape for name in weights} == weight_shapes(spec)
    assert all(weights.shape(name) == weights[name].shape for name in weights)
    assert all(weights[name].dtype == np.float32 for name in weights)
    assert len(weights) == len(weight_shapes(spec))


def test_random_weights_are_equal_by_name_and_differ_between_names() -> None:
    weights, again = RandomWeights(TINY.spec(64)), RandomWeights(TINY.spec(64))
    np.testing.assert_array_equal(weights["layers.0.up.weight"], again["layers.0.up.weight"])
    assert not np.array_equal(weights["layers.0.up.weight"], weights["layers.1.up.weight"])
    assert not np.array_equal(weights["embed"], RandomWeights(TINY.spec(64), seed=1)["embed"])
    assert (weights["final_norm"] == 1).all()


def test_random_weights_keep_activations_near_one() -> None:
    weight = RandomWeights(Shape(num_layers=1).spec(64))["layers.0.query.weight"]
    product = weight @ np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    assert 0.5 < product.std() < 2.0


# ---- samples


def test_a_figure_is_median_and_spread_in_milliseconds() -> None:
    made = figure("ours", "decode", 4, 4, [value / 1000 for value in range(20, 0, -1)], floor=5.25)
    assert (made.median_ms, made.p10_ms, made.p90_ms, made.num_samples) == (10.5, 3.0, 19.0, 20)
    assert made.tokens_per_second == pytest.approx(4 / 0.0105)
    assert made.times_the_floor == pytest.approx(2.0)
    assert made.as_json()["times_the_floor"] == made.times_the_floor


def test_one_sample_is_its_own_spread_and_none_is_an_error() -> None:
    made = figure("ours", "prefill", 1, 10, [0.002])
    assert (made.median_ms, made.p10_ms, made.p90_ms) == (2.0, 2.0, 2.0)
    assert made.times_the_floor is None
    with pytest.raises(ValueError, match="ours prefill 1: no samples"):
        figure("ours", "prefill", 1, 10, [])


def test_the_warm_up_is_not_timed() -> None:
    now, seen = [0.0], []

    def act(index: int) -> None:
        seen.append(index)
        now[0] += 10.0 if index < 2 else 1.0

    assert time_each(act, warm_up=2, count=3, clock=lambda: now[0]) == [1.0, 1.0, 1.0]
    assert seen == [0, 1, 2, 3, 4]
