"""The checkpoint that is trained: configuration, tokenizer and chat template, in transformers' own classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCAB_SIZE = 640
HIDDEN_SIZE = 192
SPECIAL_TOKENS = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
IMAGE, END = IDS["<|image|>"], IDS["<|user|>"]
PATCH, MERGE, CHANNELS = 14, 2, 3
TOKEN = PATCH * MERGE  # pixels of a side
MOST_TOKENS = 80  # of an image: a screen of 1080 x 2400 becomes 6 x 13

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "eos_token_id": [IDS["<|endoftext|>"], IDS["<|user|>"], IDS["<|observation|>"]],
    "bos_token_id": None,
    "pad_token_id": IDS["<|endoftext|>"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 0.5,
    },
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 160,
    "num_heads": 5,
    "intermediate_size": 384,
    "out_hidden_size": HIDDEN_SIZE,
    "image_size": 12 * PATCH,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "in_channels": CHANNELS,
    "rms_norm_eps": 1e-5,
}
TOKENS_OF_IMAGES: dict[str, Any] = {
    "image_token_id": IMAGE,
    "image_start_token_id": IDS["<|begin_of_image|>"],
    "image_end_token_id": IDS["<|end_of_image|>"],
    "video_token_id": IDS["<|video|>"],
    "video_start_token_id": IDS["<|begin_of_video|>"],
    "video_end_token_id": IDS["<|end_of_video|>"],
}
PREPROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 2 * TOKEN * TOKEN * 4, "longest_edge": 2 * TOKEN * TOKEN * MOST_TOKENS},
    "do_rescale": True,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Glm4vImageProcessor",
    "processor_class": "Glm4vProcessor",
}
TOKENIZER: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "processor_class": "Glm4vProcessor",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "padding_side": "left",
    "model_max_length": TEXT["max_position_embeddings"],
    "extra_special_tokens": {"image_token": "<|image|>", "video_token": "<|video|>"},
}
CHAT_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>{{ '\\n' }}
{%- elif message.role == 'assistant' %}<|assistant|>{{ '\\n' }}
{%- else %}<|system|>{{ '\\n' }}
{%- endif %}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\\n' }}
{%- endif %}"""


def new_model(seed: int) -> Any:
    """transformers' model with weights that can be trained in minutes: the library's own leave positions too faint."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.Glm4vConfig(text_config=TEXT, vision_config=VISION, **TOKENS_OF_IMAGES)
    model = transformers.Glm4vForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                parameter.normal_(0, 1 if "embed_tokens" in name else inputs**-0.5)
        table = model.model.visual.embeddings.position_embedding.weight
        table.copy_(sines(VISION["image_size"] // PATCH, table.shape[1]))
    return model


def sines(side: int, width: int) -> Any:
    """[side * side, width], amplitude 0.7: half of the columns tell the row, half the column, at rising frequencies."""
    import torch

    place = (torch.arange(side) + 0.5) / side
    angles = place[:, None] * torch.pi * (torch.arange(width // 4) * 0.25 + 0.5)
    one = 0.7 * torch.cat([angles.sin(), angles.cos()], dim=1)
    down, across = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat([down, across], dim=2).reshape(side * side, -1)


def new_tokenizer(texts: Iterable[str], words: Iterable[str]) -> Tokenizer:
    """Any text can be written, byte by byte. One token are: what is frequent in `texts` between spaces, each of its
    characters outside ASCII, and of those each of `words`."""
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    frequent = Counter(piece for text in texts for piece, _ in bytes_of.pre_tokenize_str(text))
    tokens = [*SPECIAL_TOKENS, *sorted(bytes_of.alphabet())]
    merges = [pair for piece in frequent for pair in _merges(piece)] + [pair for word in words for pair in _pairs(word)]
    merges = list(dict.fromkeys(merges))
    tokens += [left + right for left, right in merges]
    tokens += [piece for piece, _ in frequent.most_common() if len(piece) > 1 and not _merges(piece)]
    vocabulary = {token: index for index, token in enumerate(list(dict.fromkeys(tokens))[:VOCAB_SIZE])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = bytes_of
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _merges(piece: str) -> list[tuple[str, str]]:
    """That make one token of each character of three bytes, which Chinese ones are."""
    text = decoders.ByteLevel().decode([piece])
    characters = [_bytes(character) for character in text if len(character.encode()) == 3]
    return [pair for one in characters for pair in ((one[0], one[1]), (one[:2], one[2]))]


def _pairs(word: str) -> list[tuple[str, str]]:
    return [(_bytes(word[:end]), _bytes(word[end])) for end in range(1, len(word))]


def _bytes(text: str) -> str:
    """As byte-level vocabularies write them."""
    ((piece, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return str(piece)


def write_checkpoint(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """A folder as Hugging Face's hub has them, weights in 16 bits."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    model.float()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name, content in (("preprocessor_config.json", PREPROCESSOR), ("tokenizer_config.json", TOKENIZER)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
