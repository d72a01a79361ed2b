"""Where patches lie, against torch and transformers."""

from __future__ import annotations

import numpy as np
import torch
from autoglm_engine.vision.geometry import bicubic_weights, bilinear_weights, patch_order, rope_tables
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

BLOCKS = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(BLOCKS, st.integers(1, 3))
def test_patches_stand_in_the_order_of_transformers(blocks: tuple[int, int], merge: int) -> None:
    from transformers.vision_utils import get_vision_position_ids

    rows, columns = blocks[0] * merge, blocks[1] * merge
    expected = get_vision_position_ids(torch.tensor([[1, rows, columns]]), merge).numpy()
    places = np.stack(np.divmod(patch_order((rows, columns), merge), columns), axis=1)
    np.testing.assert_array_equal(places, expected)


@given(st.integers(1, 180), st.integers(1, 30))
@example(172, 24)
@example(24, 24)
@example(2, 24)
def test_positions_are_interpolated_as_torch_does(length: int, table_size: int) -> None:
    table = np.random.default_rng(0).normal(size=(table_size, table_size, 5)).astype(np.float32)
    width = 3
    along = [(torch.arange(side) + 0.5) / side * 2 - 1 for side in (length, width)]
    grid = torch.stack(torch.meshgrid(*along, indexing="ij")[::-1], dim=-1)[None]
    planes = torch.from_numpy(table.transpose(2, 0, 1)[None])
    expected = grid_sample(planes, grid, mode="bicubic", align_corners=False, padding_mode="border")
    rows, columns = bicubic_weights(length, table_size), bicubic_weights(width, table_size)
    found = np.einsum("ri,cj,ijk->krc", rows, columns, table)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-4)


@given(st.integers(1, 180), st.integers(1, 48))
@example(172, 48)
@example(48, 48)
@example(1, 48)
def test_bilinear_positions_are_those_of_transformers(length: int, table_size: int) -> None:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    table = np.random.default_rng(0).normal(size=(table_size, table_size, 5)).astype(np.float32)
    width = 3
    indices, weights = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, length, width]]), num_grid_per_side=table_size, mode="bilinear", align_corners=True
    )
    expected = (table.reshape(-1, 5)[indices.numpy()] * weights.numpy()[:, :, None]).sum(axis=1)
    rows, columns = bilinear_weights(length, table_size), bilinear_weights(width, table_size)
    found = np.einsum("ri,cj,ijk->rck", rows, columns, table).reshape(-1, 5)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@examples(max_examples=10)
@given(BLOCKS, st.sampled_from([4, 16, 128]))
def test_heads_turn_by_rows_and_columns_as_in_transformers(blocks: tuple[int, int], head_size: int) -> None:
    from transformers import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionRotaryEmbedding
    from transformers.vision_utils import get_vision_position_ids

    rows, columns = 2 * blocks[0], 2 * blocks[1]
    rope = Glm4vVisionRotaryEmbedding(Glm4vVisionConfig(hidden_size=2 * head_size, num_heads=2))
    places = get_vision_position_ids(torch.tensor([[1, rows, columns]]), 2)
    expected = rope(torch.zeros(1), places)
    for found, wanted in zip(rope_tables((rows, columns), 2, head_size, 10_000.0), expected, strict=True):
        half = wanted[:, : head_size // 2].numpy()
        np.testing.assert_array_equal(wanted[:, head_size // 2 :].numpy(), half)
        np.testing.assert_allclose(found, half, atol=1e-5)
