"""A Hugging Face `config.json` -> `ModelSpec`, strictly.

Every key is one of three: read here, known to leave the mathematics of a forward pass alone (`HARMLESS`), or refused by
name. Both spellings of the rope are read: `rope_theta` + `rope_scaling` + `partial_rotary_factor` at the top
(transformers 4) and the one `rope_parameters` dictionary (transformers 5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoglm_export.errors import UnsupportedModel
from autoglm_export.model.spec import Llama3Scaling, ModelSpec, RopeSpec

from .config_keys import HARMLESS, NEUTRAL, VISION
from .families import FAMILIES, Family, SeeingFamily

ROPE_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "mrope_section",
        "mrope_interleaved",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    }
)

MIN, MAX = 1e-30, 1e30  # of a number: what float32 computes with to some use
MAX_WHOLE = 2**31 - 1


@dataclass(slots=True)
class Keys:
    """A config dictionary that remembers what was read."""

    raw: Mapping[str, Any]
    read: set[str] = field(default_factory=set)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WHOLE:
            raise UnsupportedModel(
                f"the config's {key} is {value!r:.40}; it must be a whole number of 1 ... {MAX_WHOLE}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not MIN <= value <= MAX:
            raise UnsupportedModel(f"the config's {key} is {value!r:.40}; it must be a number of {MIN:g} ... {MAX:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UnsupportedModel(f"the config's {key} is {value!r}; it must be true or false")
        return value

    def list(self, key: str, default: Sequence[Any] = ()) -> Sequence[Any]:
        value = self.get(key, default)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UnsupportedModel(f"the config's {key} is {value!r:.40}; it must be a list")
        return value

    def object(self, key: str) -> Mapping[str, Any]:
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise UnsupportedModel(f"the config's {key} is {value!r:.40}; it must be an object")
        return value

    def refuse_rest(self, known: frozenset[str]) -> None:
        unknown = sorted(key for key in self.raw.keys() - self.read - known if self.raw[key] is not None)
        if unknown:
            raise UnsupportedModel(f"the config has keys that are not understood: {', '.join(unknown)}")


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a decoder whose config.json is `config`. Raises UnsupportedModel, naming the key."""
    family = family_of(config)
    keys = Keys(_text_config(config, family))
    spec = _read_spec(keys, family)
    _check_activation(keys)
    _check_neutral(keys)
    if family.sliding_window_keys:
        _check_full_attention(keys, spec.num_layers)
    keys.refuse_rest(HARMLESS | VISION if family.seeing else HARMLESS)
    return spec


def family_of(config: Mapping[str, Any]) -> Family:
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModel(f"the config's model_type is {name!r}; supported are {', '.join(sorted(FAMILIES))}")
    architectures = config.get("architectures") or list(family.architectures)
    if not isinstance(architectures, list):
        raise UnsupportedModel(f"the config's architectures are {architectures!r:.40}; they must be a list")
    if unknown := [name for name in architectures if name not in family.architectures]:
        raise UnsupportedModel(f"the architecture {unknown[0]} is not supported; {family.architectures[0]} is")
    return family


def _text_config(config: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """A family that takes images nests its decoder in `text_config` (glm4v's first checkpoints did not); what stands
    outside still counts."""
    if family.seeing is None or "text_config" not in config:
        return config
    if not isinstance(config["text_config"], dict):
        raise UnsupportedModel(f"the config's text_config is {config['text_config']!r:.40}; it must be an object")
    inner: dict[str, Any] = dict(config["text_config"])
    expected = family.seeing.text_type
    if inner.get("model_type", expected) != expected:
        raise UnsupportedModel(f"text_config.model_type is {inner['model_type']!r}; it must be {expected!r}")
    outer = {key: value for key, value in config.items() if key != "text_config"}
    tied = bool(inner.get("tie_word_embeddings")) or bool(outer.get("tie_word_embeddings"))
    return {**outer, **inner, "tie_word_embeddings": tied}


def _read_spec(keys: Keys, family: Family) -> ModelSpec:
    hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    num_kv_heads = keys.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModel(
            f"num_attention_heads is {num_heads}; it must be a multiple of num_key_value_heads, {num_kv_heads}"
        )
    head_size = _head_size(keys, family, hidden_size, num_heads)
    max_position = keys.integer("max_position_embeddings")
    return ModelSpec(
        family=family.name,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=keys.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        intermediate_size=keys.integer("intermediate_size"),
        norm_eps=keys.number("rms_norm_eps"),
        rope=_read_rope(keys, family, head_size, max_position),
        max_position=max_position,
        qkv_bias=_bias(keys, family, family.qkv_bias),
        output_bias=_bias(keys, family, family.output_bias),
        mlp_bias=_bias(keys, family, family.mlp_bias),
        qk_norm=family.qk_norm,
        sandwich_norm=family.sandwich_norm,
        tied_embeddings=keys.flag("tie_word_embeddings", False),
    )


def _head_size(keys: Keys, family: Family, hidden_size: int, num_heads: int) -> int:
    derived = hidden_size // num_heads
    head_size = keys.integer("head_dim", family.default_head_size or derived)
    if family.seeing and not family.seeing.has_head_size and head_size != derived:
        raise UnsupportedModel(
            f"head_dim is {head_size}; a {family.name} model has hidden_size / num_attention_heads, {derived}"
        )
    return head_size


def _bias(keys: Keys, family: Family, rule: bool | str) -> bool:
    if isinstance(rule, str):
        return keys.flag(rule, family.attention_bias_default and rule == "attention_bias")
    if rule and not keys.flag("attention_bias", True):
        raise UnsupportedModel(f"attention_bias is false; every {family.name} model has biases there")
    return rule


def _check_activation(keys: Keys) -> None:
    if (activation := keys.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedModel(f"the config's hidden_act is {activation!r}; only 'silu' is supported")


def _check_neutral(keys: Keys) -> None:
    for key, allowed in NEUTRAL.items():
        if (value := keys.get(key, allowed[0])) not in allowed:
            raise UnsupportedModel(f"the config's {key} is {value!r}; only {allowed[0]!r} is supported")


def _check_full_attention(keys: Keys, num_layers: int) -> None:
    """Sliding windows would make some layers forget; refuse them, whatever way they are asked for."""
    window, first = keys.get("sliding_window"), keys.get("max_window_layers", 0)
    reaches = not isinstance(first, int) or first < num_layers
    if keys.flag("use_sliding_window", False) and window is not None and reaches:
        raise UnsupportedModel(
            f"use_sliding_window is true with a sliding_window of {window}; only full attention works"
        )
    types = keys.list("layer_types")
    if other := [kind for kind in types if kind != "full_attention"]:
        raise UnsupportedModel(f"layer_types holds {other[0]!r}; only 'full_attention' is supported")


def _read_rope(keys: Keys, family: Family, head_size: int, max_position: int) -> RopeSpec:
    rope = Keys(_merged_rope(keys))
    partial = rope.number("partial_rotary_factor", family.default_partial)
    if partial > 1 or (partial != 1 and not family.partial_rope):
        raise UnsupportedModel(f"partial_rotary_factor is {partial}; a {family.name} model allows only 1")
    dims = int(head_size * partial)
    if dims < 2 or dims % 2:
        raise UnsupportedModel(f"the rotary embedding would cover {dims} of {head_size} dimensions; it must be even")
    scaling = _read_scaling(rope, max_position)
    theta = rope.number("rope_theta", family.default_theta)
    spec = RopeSpec(theta=theta, dims=dims, interleaved=family.interleaved_rope, scaling=scaling)
    spec = _with_sections(spec, rope, family.seeing) if family.seeing else spec
    rope.refuse_rest(frozenset())
    return spec


def _merged_rope(keys: Keys) -> dict[str, Any]:
    """All rope keys in one dictionary; two places may say the same, never different things."""
    merged: dict[str, Any] = {}
    top = {key: keys.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for source in (keys.object("rope_parameters"), keys.object("rope_scaling"), top):
        for key, value in source.items():
            if value is None:
                continue
            if key not in ROPE_KEYS:
                raise UnsupportedModel(f"the config's rope has a key that is not understood: {key}")
            name = "rope_type" if key == "type" else key
            if merged.setdefault(name, value) != value:
                raise UnsupportedModel(f"the config gives {name} twice: {merged[name]!r} and {value!r}")
    return merged


def _read_scaling(rope: Keys, max_position: int) -> Llama3Scaling | float | None:
    kind = rope.get("rope_type", "default")
    if kind in ("default", "mrope"):
        return None
    if kind == "linear":
        factor = rope.number("factor")
        rope.get("original_max_position_embeddings")  # says where `factor` comes from, changes nothing
        return factor
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_position=rope.integer("original_max_position_embeddings", max_position),
        )
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise UnsupportedModel(
                f"the config's low_freq_factor is {scaling.low_freq_factor:g}; it must be below high_freq_factor, "
                f"{scaling.high_freq_factor:g}"
            )
        return scaling
    raise UnsupportedModel(f"the rope scaling type {kind!r} is not supported; default, linear and llama3 are")


def _with_sections(spec: RopeSpec, rope: Keys, family: SeeingFamily) -> RopeSpec:
    if (mixed := rope.flag("mrope_interleaved", family.mixed_sections)) != family.mixed_sections:
        raise UnsupportedModel(f"mrope_interleaved is {mixed}; it is always {family.mixed_sections} in this family")
    sections = tuple(rope.list("mrope_section", family.sections))
    are_counts = len(sections) == 3 and all(type(part) is int and part >= 0 for part in sections)
    if not are_counts or sum(sections) != spec.dims // 2:
        raise UnsupportedModel(
            f"mrope_section is {list(sections)!r:.80}; it must be three whole numbers, and their sum half of the "
            f"{spec.dims} dimensions that the rotary embedding covers"
        )
    spec = dataclasses.replace(spec, sections=sections, mixed_sections=mixed)
    if (found := [spec.axes.count(axis) for axis in range(3)]) != list(sections):
        raise UnsupportedModel(
            f"mrope_section is {list(sections)}; where sections take turns in {spec.dims // 2} pairs, {found} fit"
        )
    return spec
