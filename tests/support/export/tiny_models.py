"""Tiny random checkpoints of every family, made with transformers, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCAB_SIZE = 300
FAMILIES = ("llama", "qwen2", "qwen3", "glm", "glm4", "glm4v")
SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>")
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "glm": {"head_dim": 32},
    "glm4": {"head_dim": 32},
    "glm4v": {"num_attention_heads": 2, "num_key_value_heads": 1},
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": 2,
}
VISION |= {"image_size": 8, "temporal_patch_size": 1, "spatial_merge_size": 1, "in_channels": 3}


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A transformers model whose every parameter is random: norms and biases too, so that a lost one shows."""
    import torch

    model = _build(family, {**SIZES, **EXTRAS.get(family, {}), **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and "norm" in name
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.15 * noise)
    return model.eval()


def _build(family: str, sizes: dict[str, Any]) -> Any:
    import transformers as t

    if family == "glm4v":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
        config = t.Glm4vConfig(text_config={**sizes, "rope_parameters": rope}, vision_config=dict(VISION))
        return t.Glm4vForConditionalGeneration(config)
    prefix = family.capitalize()
    return getattr(t, f"{prefix}ForCausalLM")(getattr(t, f"{prefix}Config")(**sizes))


def write_tokenizer(folder: Path) -> None:
    """One token a byte, and a few special ones behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_checkpoint(folder: Path, family: str, *, dtype: str = "float32", shard: str = "5GB", **changes: Any) -> Any:
    """Save a tiny model of `family` with tokenizer and chat template; the model is what was written."""
    import torch

    model = tiny_model(family, **changes).to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"
    )
    return model


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
