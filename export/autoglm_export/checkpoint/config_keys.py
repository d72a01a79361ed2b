"""Keys of config.json that say nothing about what a forward pass computes, and those that must say the usual.

A key of neither kind that nobody reads is refused by name. Sources: the configuration classes of transformers 4.46 and
5.23 (`PreTrainedConfig`, `GenerationConfig`), and keys that training code of published checkpoints left behind.
"""

from __future__ import annotations

from typing import Any

# How the library finds, names and runs a model.
_LIBRARY = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "_pre_quantization_dtype",
        "architectures",
        "attn_implementation",
        "auto_map",
        "base_model_ep_plan",
        "base_model_pp_plan",
        "base_model_tp_plan",
        "bf16",
        "custom_pipelines",
        "dtype",
        "experts_implementation",
        "flash_attn",
        "fp16",
        "fp32",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "model_name",
        "model_type",
        "name_or_path",
        "pretraining_tp",
        "processor_class",
        "return_dict",
        "tf_legacy_loss",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "use_bfloat16",
        "use_flash_attention",
        "use_flash_attention_2",
        "use_flash_attn",
        "use_return_dict",
        "xla_device",
    }
)
# What other tasks than generation read.
_TASKS = frozenset(
    {
        "classifier_dropout",
        "cross_attention_hidden_size",
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "prefix",
        "problem_type",
        "task_specific_params",
    }
)
# What training reads, or left behind.
_TRAINING = frozenset(
    {
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_dropout",
        "attn_pdrop",
        "emb_dropout_prob",
        "embd_pdrop",
        "embedding_dropout",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "initializer_factor",
        "initializer_range",
        "mlp_dropout",
        "neftune_noise_alpha",
        "resid_pdrop",
        "residual_dropout",
        "unsloth_fixed",
        "unsloth_version",
        "use_gradient_checkpointing",
        "z_loss",
    }
)
# Tokens and texts are the tokenizer's, lengths of texts the user's.
_TOKENIZER = frozenset(
    {
        "bos_token",
        "bos_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "eos_token",
        "eos_token_id",
        "mask_token_id",
        "max_sequence_length",
        "model_max_length",
        "pad_token",
        "pad_token_id",
        "sep_token_id",
        "seq_length",
        "tokenizer_class",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "unk_token_id",
    }
)
# Of generation: transformers 4 wrote them into config.json, too.
_GENERATION = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "cache_implementation",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "guidance_scale",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "max_time",
        "min_length",
        "min_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "penalty_alpha",
        "remove_invalid_values",
        "renormalize_logits",
        "repetition_penalty",
        "return_dict_in_generate",
        "stop_strings",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "use_cache",
    }
)
HARMLESS = _LIBRARY | _TASKS | _TRAINING | _TOKENIZER | _GENERATION
# Keys that speak of images only, of a family that takes them.
VISION = frozenset(
    {
        "image_start_token_id",
        "image_end_token_id",
        "image_token_id",
        "video_start_token_id",
        "video_end_token_id",
        "video_token_id",
        "vision_config",
        "vision_start_token_id",
        "vision_end_token_id",
    }
)
# Keys that would change the mathematics at any other value.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "is_causal": (True,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "tie_encoder_decoder": (False,),
    "quantization_config": (None,),
    "pruned_heads": ({},),
}
