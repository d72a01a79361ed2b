"""`vision_config` of a config.json -> `VisionSpec`, strictly: every key is read, known to be harmless, or refused by
name. What a config leaves out is what transformers' `Glm4vVisionConfig` or `Qwen3VLVisionConfig` takes.

Two widths of glm4v have names that mislead: the blocks' MLP is `out_hidden_size` wide, the merger's
`intermediate_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm_export.errors import UnsupportedModel
from autoglm_export.model.vision_spec import NUM_CHANNELS, VisionSpec

from .config_keys import HARMLESS
from .hf_config import Keys

_GLM4V: dict[str, tuple[Any, ...]] = {"model_type": ("glm4v", "glm4v_vision"), "hidden_act": ("silu", "swish")}
_QWEN3_VL: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3_vl", "qwen3_vl_vision"),
    "hidden_act": ("gelu_pytorch_tanh",),
}
_NORM_EPS = 1e-6  # of every norm of a Qwen3-VL tower
_ROPE = {"rope_type": "axial", "type": "axial", "partial_rotary_factor": 1.0}


def glm4v_spec(raw: Mapping[str, Any], decoder_width: int) -> VisionSpec:
    """Raises UnsupportedModel, naming the key. `decoder_width`: the hidden size of the text model."""
    keys = Keys(raw)
    patch_size = _side(keys, "patch_size", 14)
    output_size = keys.integer("out_hidden_size", 4096)
    spec = VisionSpec(
        patch_size=patch_size,
        temporal_patch_size=keys.integer("temporal_patch_size", 2),
        merge_size=keys.integer("spatial_merge_size", 2),
        position_table_size=_side(keys, "image_size", 336) // patch_size,
        hidden_size=keys.integer("hidden_size", 1536),
        num_layers=keys.integer(_first_of(keys, "depth", "num_hidden_layers"), 24),
        num_heads=keys.integer(_first_of(keys, "num_heads", "num_attention_heads"), 12),
        intermediate_size=output_size,
        output_size=output_size,
        merger_size=keys.integer("intermediate_size", 13696),
        norm_eps=keys.number("rms_norm_eps", 1e-5),
        rope_theta=_rope_theta(keys),
        qkv_bias=keys.flag("attention_bias", False),
    )
    _check_fixed(keys, spec, _GLM4V)
    _check_sizes(spec, decoder_width)
    keys.refuse_rest(HARMLESS | {"hidden_dropout_prob"})
    return spec


def qwen3_vl_spec(raw: Mapping[str, Any], decoder_width: int) -> VisionSpec:
    """As `glm4v_spec`."""
    keys = Keys(raw)
    hidden_size, merge_size = keys.integer("hidden_size", 1152), keys.integer("spatial_merge_size", 2)
    num_layers = keys.integer(_first_of(keys, "depth", "num_hidden_layers"), 27)
    spec = VisionSpec(
        patch_size=_side(keys, "patch_size", 16),
        temporal_patch_size=keys.integer("temporal_patch_size", 2),
        merge_size=merge_size,
        position_table_size=_root(keys, "num_position_embeddings", 2304),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=keys.integer(_first_of(keys, "num_heads", "num_attention_heads"), 16),
        intermediate_size=keys.integer("intermediate_size", 4304),
        output_size=keys.integer("out_hidden_size", 3584),
        merger_size=merge_size**2 * hidden_size,
        norm_eps=_NORM_EPS,
        rope_theta=_rope_theta(keys),
        qkv_bias=True,
        merger_norm_eps=_NORM_EPS,
        norm="layer",
        gated=False,
        patch_norm=False,
        interpolation="bilinear",
        deepstack=_blocks(keys, "deepstack_visual_indexes", (8, 16, 24), num_layers),
    )
    _check_fixed(keys, spec, _QWEN3_VL)
    _check_sizes(spec, decoder_width)
    keys.refuse_rest(HARMLESS)
    return spec


def _root(keys: Keys, name: str, default: int) -> int:
    """Of a square number."""
    if (root := math.isqrt(square := keys.integer(name, default))) ** 2 != square:
        raise UnsupportedModel(f"the vision_config's {name} is {square}; it must be a square number")
    return root


def _blocks(keys: Keys, name: str, default: Sequence[int], num_layers: int) -> tuple[int, ...]:
    blocks = tuple(keys.list(name, default))
    if not all(type(block) is int and 0 <= block < num_layers for block in blocks) or sorted(set(blocks)) != [*blocks]:
        raise UnsupportedModel(
            f"the vision_config's {name} is {list(blocks)!r:.60}; it must hold ascending numbers, each of "
            f"0 ... {num_layers - 1}"
        )
    return blocks


def _first_of(keys: Keys, name: str, other: str) -> str:
    """transformers knows either name; both are read."""
    keys.read |= {name, other}
    given = {key: keys.raw[key] for key in (name, other) if keys.raw.get(key) is not None}
    if len(set(given.values())) > 1:
        raise UnsupportedModel(f"the vision_config gives {name} {given[name]!r} and {other} {given[other]!r}")
    return other if list(given) == [other] else name


def _side(keys: Keys, name: str, default: int) -> int:
    """A number, or the same number for height and width."""
    value = keys.get(name, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return Keys({name: value[0]}).integer(name)
    return keys.integer(name, default)


def _rope_theta(keys: Keys) -> float:
    rope = Keys({**keys.object("rope_parameters")})
    for name, allowed in _ROPE.items():
        if (value := rope.get(name, allowed)) != allowed:
            raise UnsupportedModel(f"the vision_config's {name} is {value!r}; only {allowed!r} is supported")
    inner = rope.number("rope_theta", 10_000.0)
    theta = keys.number("rope_theta", inner)
    if theta != inner and "rope_theta" in rope.raw:
        raise UnsupportedModel(f"the vision_config gives rope_theta twice: {theta:g} and {inner:g}")
    rope.refuse_rest(frozenset())
    return theta


def _check_fixed(keys: Keys, spec: VisionSpec, of_family: Mapping[str, tuple[Any, ...]]) -> None:
    fixed = {**of_family, "in_channels": (NUM_CHANNELS,), "head_dim": (spec.head_size,)}
    for name, allowed in fixed.items():
        if (value := keys.get(name, allowed[0])) not in allowed:
            raise UnsupportedModel(f"the vision_config's {name} is {value!r:.40}; only {allowed[0]!r} is supported")


def _check_sizes(spec: VisionSpec, decoder_width: int) -> None:
    if spec.hidden_size % spec.num_heads or spec.head_size % 4:
        raise UnsupportedModel(
            f"the vision_config has {spec.hidden_size} dimensions in {spec.num_heads} heads; a head must have a "
            "multiple of 4"
        )
    if spec.output_size != decoder_width:
        raise UnsupportedModel(
            f"the vision_config's out_hidden_size is {spec.output_size}; the text model is {decoder_width} wide"
        )
    if not spec.position_table_size:
        raise UnsupportedModel("the vision_config's image_size is below its patch_size")
