"""What sets the model families apart: one literal table each, tensor names on the right as the checkpoint has them.

A value `name#0/2` is the first half of that tensor's rows: the GLM families store gate and up as one matrix.
Names of layers hold `{i}`. Which of the rows a model has follows from its spec (biases, norms, tied embeddings).
Source of the names: the state dicts of transformers 5's `modeling_<family>.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FamilyName = Literal["llama", "qwen2", "qwen3", "qwen3_vl", "glm", "glm4", "glm4v"]

SEPARATE_GATE_UP = {
    "layers.{i}.gate": "layers.{i}.mlp.gate_proj",
    "layers.{i}.up": "layers.{i}.mlp.up_proj",
}
FUSED_GATE_UP = {
    "layers.{i}.gate": "layers.{i}.mlp.gate_up_proj#0/2",
    "layers.{i}.up": "layers.{i}.mlp.gate_up_proj#1/2",
}
COMMON = {
    "embed": "embed_tokens.weight",
    "layers.{i}.attention_norm": "layers.{i}.input_layernorm.weight",
    "layers.{i}.query": "layers.{i}.self_attn.q_proj",
    "layers.{i}.key": "layers.{i}.self_attn.k_proj",
    "layers.{i}.value": "layers.{i}.self_attn.v_proj",
    "layers.{i}.output": "layers.{i}.self_attn.o_proj",
    "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.down": "layers.{i}.mlp.down_proj",
    "final_norm": "norm.weight",
}
QK_NORM = {
    "layers.{i}.query_norm": "layers.{i}.self_attn.q_norm.weight",
    "layers.{i}.key_norm": "layers.{i}.self_attn.k_norm.weight",
}
SANDWICH_NORM = {
    "layers.{i}.post_attention_norm": "layers.{i}.post_self_attn_layernorm.weight",
    "layers.{i}.post_mlp_norm": "layers.{i}.post_mlp_layernorm.weight",
}


@dataclass(frozen=True, slots=True)
class SeeingFamily:
    """The decoder of a family that takes images. `text_type`: the `model_type` of `text_config`, where its config is
    nested. `sections`: of M-RoPE, where a config names none."""

    text_type: str
    sections: tuple[int, int, int]
    mixed_sections: bool = False
    has_head_size: bool = True  # False: a head is hidden_size / num_attention_heads, whatever the config says


@dataclass(frozen=True, slots=True)
class Family:
    """One family's constants.

    `qkv_bias`, `output_bias`, `mlp_bias`: True or False where the architecture fixes it, else the config key that says.
    `names`: canonical name -> name below `prefix`; linear layers without their `.weight` or `.bias`.
    `ignored`: prefixes of tensors that a text-only decoder leaves out.
    """

    name: FamilyName
    architectures: tuple[str, ...]
    names: dict[str, str]
    prefix: str = "model."
    ignored: tuple[str, ...] = ()
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    sandwich_norm: bool = False
    interleaved_rope: bool = False
    partial_rope: bool = False  # whether `partial_rotary_factor` is honoured
    default_partial: float = 1.0
    default_head_size: int | None = None  # None: hidden_size / num_attention_heads
    attention_bias_default: bool = False
    sliding_window_keys: bool = False
    default_theta: float = 10_000.0
    seeing: SeeingFamily | None = None


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llama",
            architectures=("LlamaForCausalLM",),
            names=COMMON | SEPARATE_GATE_UP,
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
        ),
        Family(
            name="qwen2",
            architectures=("Qwen2ForCausalLM",),
            names=COMMON | SEPARATE_GATE_UP,
            qkv_bias=True,
            sliding_window_keys=True,
        ),
        Family(
            name="qwen3",
            architectures=("Qwen3ForCausalLM",),
            names=COMMON | SEPARATE_GATE_UP | QK_NORM,
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            qk_norm=True,
            default_head_size=128,
            sliding_window_keys=True,
        ),
        Family(
            name="glm",
            architectures=("GlmForCausalLM",),
            names=COMMON | FUSED_GATE_UP,
            qkv_bias="attention_bias",
            interleaved_rope=True,
            partial_rope=True,
            default_partial=0.5,
            default_head_size=128,
            attention_bias_default=True,
        ),
        Family(
            name="glm4",
            architectures=("Glm4ForCausalLM",),
            names=COMMON | FUSED_GATE_UP | SANDWICH_NORM,
            qkv_bias="attention_bias",
            sandwich_norm=True,
            interleaved_rope=True,
            partial_rope=True,
            default_partial=0.5,
            default_head_size=128,
            attention_bias_default=True,
        ),
        Family(
            name="glm4v",
            architectures=("Glm4vForConditionalGeneration",),
            names=COMMON | FUSED_GATE_UP | SANDWICH_NORM,
            prefix="model.language_model.",
            ignored=("model.visual.",),
            qkv_bias=True,
            sandwich_norm=True,
            interleaved_rope=True,
            partial_rope=True,
            attention_bias_default=True,
            seeing=SeeingFamily("glm4v_text", (8, 12, 12), has_head_size=False),
        ),
        Family(
            name="qwen3_vl",
            architectures=("Qwen3VLForConditionalGeneration",),
            names=COMMON | SEPARATE_GATE_UP | QK_NORM,
            prefix="model.language_model.",
            ignored=("model.visual.",),
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            qk_norm=True,
            default_head_size=128,
            default_theta=500_000.0,
            seeing=SeeingFamily("qwen3_vl_text", (24, 20, 20), mixed_sections=True),
        ),
    )
}
