"""Random glm4v checkpoints: what they say is noise, and it costs what a trained one of their shape would cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

_BYTES = 256
_SPECIAL = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
_IDS = {token: _BYTES + index for index, token in enumerate(_SPECIAL)}
_VOCAB_SIZE = 320
_FACTOR = 28  # pixels of a token's side
_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>{{ '\\n' }}
{%- elif message.role == 'assistant' %}<|assistant|>{{ '\\n' }}
{%- else %}<|system|>{{ '\\n' }}
{%- endif %}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type in ('image', 'image_url') or 'image' in part %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"""


@dataclass(frozen=True, slots=True)
class Shape:
    """`max_tokens`: of an image. `mrope`: sections of the decoder's rotary embedding."""

    name: str
    tower_width: int
    tower_layers: int
    tower_heads: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    mrope: tuple[int, int, int]
    max_tokens: int


SMALL = Shape("small", 160, 4, 5, 192, 3, 6, 2, 384, (2, 3, 3), 80)
WIDE = Shape("wide", 384, 12, 6, 576, 12, 9, 3, 1536, (4, 6, 6), 600)


def checkpoint(shape: Shape, root: Path) -> Path:
    """Its folder below `root`, written where it is missing."""
    folder = root / f"glm4v-{shape.name}"
    if not folder.exists():
        unfinished = root / f"glm4v-{shape.name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _model(shape).save_pretrained(unfinished)
        _write_texts(shape, unfinished)
        unfinished.rename(folder)
    return folder


def _model(shape: Shape) -> Any:
    import torch
    import transformers

    names = {"image": "image", "image_start": "begin_of_image", "image_end": "end_of_image", "video": "video"}
    names |= {"video_start": "begin_of_video", "video_end": "end_of_video"}
    tokens = {f"{key}_token_id": _IDS[f"<|{name}|>"] for key, name in names.items()}
    config = transformers.Glm4vConfig(text_config=_text(shape), vision_config=_tower(shape), **tokens)
    torch.manual_seed(0)
    model = transformers.Glm4vForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # sums over many inputs stay near 1
                parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
        letters = [_letters().index(letter) for letter in ascii_lowercase]  # each token is then seen as text
        others = torch.ones(_VOCAB_SIZE, dtype=torch.bool)
        others[letters] = False
        model.lm_head.weight[others] = 0
    return model


def _text(shape: Shape) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(shape.mrope)}
    return {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "eos_token_id": [_IDS["<|endoftext|>"], _IDS["<|user|>"]],
        "bos_token_id": None,
        "pad_token_id": _IDS["<|endoftext|>"],
        "rope_parameters": {**rope, "partial_rotary_factor": 0.5},
    }


def _tower(shape: Shape) -> dict[str, Any]:
    return {
        "depth": shape.tower_layers,
        "hidden_size": shape.tower_width,
        "num_heads": shape.tower_heads,
        "intermediate_size": shape.mlp,
        "out_hidden_size": shape.width,
        "image_size": 336,
        "patch_size": _FACTOR // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }


def _write_texts(shape: Shape, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(_letters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "Glm4vProcessor"}
    said |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    special = {"image_token": "<|image|>", "video_token": "<|video|>"}
    _write_json(folder / "tokenizer_config.json", {**said, "extra_special_tokens": special})
    pixels = 2 * _FACTOR**2  # of a token, in two frames
    processor = {
        "size": {"shortest_edge": 4 * pixels, "longest_edge": shape.max_tokens * pixels},
        "do_rescale": True,
        "patch_size": _FACTOR // 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Glm4vImageProcessor",
        "processor_class": "Glm4vProcessor",
    }
    _write_json(folder / "preprocessor_config.json", processor)


def _letters() -> list[str]:
    """What stands for each byte."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))
