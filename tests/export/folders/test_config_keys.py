"""config.json: keys that change nothing are passed over, those that change the mathematics are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from autoglm_export.checkpoint.config_keys import HARMLESS, NEUTRAL
from autoglm_export.checkpoint.hf_config import spec_from_config
from autoglm_export.errors import UnsupportedModel

from tests.support.export.plain_checkpoints import SPEC, config_of

PLAIN = config_of(SPEC)
# What transformers 4.46's `PretrainedConfig.__init__` takes, and the values that it writes.
OF_TRANSFORMERS_4: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "torch_dtype": "bfloat16",
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "tie_word_embeddings": False,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "architectures": ["LlamaForCausalLM"],
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "num_labels": 2,
    "tokenizer_class": "LlamaTokenizer",
    "prefix": "",
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "sep_token_id": None,
    "decoder_start_token_id": 1,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "problem_type": "single_label_classification",
    "xla_device": True,
    "_name_or_path": "/home/me/checkpoint-500",
    "_commit_hash": "0123abc",
    "_attn_implementation_autoset": True,
    "attn_implementation": "flash_attention_2",
    "transformers_version": "4.46.3",
}
LEFTOVERS: dict[str, Any] = {
    "auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"},
    "custom_pipelines": {"x": {"impl": "x.XPipeline"}},
    "gradient_checkpointing": True,
    "attention_dropout": 0.1,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "hidden_dropout_prob": 0.1,
    "classifier_dropout": 0.1,
    "initializer_range": 0.02,
    "neftune_noise_alpha": 5,
    "unsloth_version": "2025.1",
    "use_cache": False,
    "pretraining_tp": 2,
    "_flash_attn_2_enabled": True,
    "use_flash_attn": "auto",
    "bf16": True,
    "fp16": False,
    "keys_to_ignore_at_inference": ["past_key_values"],
    "model_max_length": 4096,
    "max_sequence_length": 4096,
    "tokenizer_padding_side": "right",
    "dtype": "float16",
    "eos_token": "</s>",
    "transformers.js_config": {"dtype": "q4"},
}
# key, value: what a spec without it would compute otherwise
MATHEMATICS: dict[str, Any] = {
    "attn_logit_softcapping": 50.0,
    "embedding_multiplier": 12.0,
    "final_logit_softcapping": 30.0,
    "is_causal": False,
    "logits_scaling": 8.0,
    "moe_intermediate_size": 512,
    "num_experts": 8,
    "per_layer_config": {"0": {"hidden_size": 32}},
    "pruned_heads": {"0": [1]},
    "quantization": {"group_size": 64, "bits": 4},
    "quantization_config": {"quant_method": "fp8"},
    "query_pre_attn_scalar": 256,
    "residual_multiplier": 0.2,
    "rotary_pct": 0.25,
    "sliding_window": 4096,
    "use_mrope": True,
    "use_parallel_residual": True,
    "use_qk_norm": True,
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "some_key_of_tomorrow": 1,
}


@pytest.mark.parametrize("key", sorted({**OF_TRANSFORMERS_4, **LEFTOVERS}))
def test_a_key_that_changes_nothing_is_passed_over(key: str) -> None:
    value = {**OF_TRANSFORMERS_4, **LEFTOVERS}[key]
    assert spec_from_config({**PLAIN, key: value}) == spec_from_config(PLAIN)


def test_all_of_them_at_once() -> None:
    assert spec_from_config({**PLAIN, **OF_TRANSFORMERS_4, **LEFTOVERS}) == spec_from_config(PLAIN)


def test_what_this_transformers_writes_of_every_model_and_of_generation() -> None:
    from transformers import GenerationConfig, PreTrainedConfig

    of_models = {**PreTrainedConfig().to_dict(), "model_type": "llama"}
    of_generation = {name: value for name, value in vars(GenerationConfig()).items() if name != "_from_model_config"}
    defaults = GenerationConfig._get_default_generation_params()
    whole = {**of_generation, **defaults, **PLAIN, **of_models}
    assert spec_from_config(whole) == spec_from_config(PLAIN)
    assert set(defaults) <= HARMLESS


def test_what_a_class_of_transformers_writes() -> None:
    from transformers import LlamaConfig

    config = {**PLAIN, "hidden_size": 16 * PLAIN["num_attention_heads"]}
    written = LlamaConfig(**{name: value for name, value in config.items() if name != "model_type"}).to_dict()
    assert spec_from_config(written) == spec_from_config(config)


@pytest.mark.parametrize("key", sorted(MATHEMATICS))
def test_a_key_that_changes_the_mathematics_is_refused_by_name(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=key):
        spec_from_config({**PLAIN, key: MATHEMATICS[key]})


def test_a_key_is_of_one_kind() -> None:
    assert not HARMLESS & NEUTRAL.keys() and not HARMLESS & MATHEMATICS.keys()
    assert not HARMLESS & {"hidden_size", "rope_theta", "rope_scaling", "tie_word_embeddings", "attention_bias"}
