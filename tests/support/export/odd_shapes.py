"""Random decoders of shapes that fill no vector, no panel and no tile."""

from __future__ import annotations

import numpy as np
from autoglm_export.model.spec import ModelSpec, RopeSpec

NUM_ODD_SHAPES = 6


def odd_shape(seed: int) -> ModelSpec:
    """Heads of any even size in groups of any size, odd widths and vocabulary, any of the families' variants."""
    random = np.random.default_rng(seed)
    num_kv_heads, group = int(random.choice([1, 2, 3, 5])), int(random.choice([1, 2, 3, 5]))
    head_size = 2 * int(random.integers(1, 45))
    is_sandwiched, is_tied, has_head_norms, is_interleaved, *biases = (bool(flag) for flag in random.integers(0, 2, 7))
    return ModelSpec(
        family="llama",
        vocab_size=_odd(random, 60, 200),
        hidden_size=_odd(random, 16, 120),
        num_layers=int(random.integers(1, 3)),
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        intermediate_size=_odd(random, 16, 200),
        norm_eps=1e-5,
        rope=RopeSpec(theta=1e4, dims=2 * int(random.integers(1, head_size // 2 + 1)), interleaved=is_interleaved),
        max_position=512,
        qkv_bias=biases[0],
        output_bias=biases[1],
        mlp_bias=biases[2],
        qk_norm=has_head_norms,
        sandwich_norm=is_sandwiched,
        tied_embeddings=is_tied,
    )


def _odd(random: np.random.Generator, low: int, high: int) -> int:
    return int(random.integers(low, high)) | 1


ODD_SHAPES = {
    f"{spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_size}, {seed}": spec
    for seed, spec in ((seed, odd_shape(seed)) for seed in range(NUM_ODD_SHAPES))
}
