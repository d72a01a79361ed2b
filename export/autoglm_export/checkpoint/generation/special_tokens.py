"""The named special tokens of a checkpoint, `bos_token` and its like, as a chat template is given them.

Of a folder the rules are transformers' (5.23, `PreTrainedTokenizerBase.from_pretrained` and its `special_tokens_map`):
tokenizer_config.json names them; special_tokens_map.json counts where that has no `added_tokens_decoder`, as older
versions wrote it; any other key that ends with `_token` is one, too, and so are the entries of `extra_special_tokens`
where that is an object. What no file says, the class of the tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoglm_export.checkpoint.folder_files import read_json_if_there
from autoglm_export.errors import CheckpointError

from .end_tokens import Metadata

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
EXTRA = ("model_specific_special_tokens", "additional_special_tokens", "extra_special_tokens")
# name -> key below `tokenizer.ggml`, as `gguf.constants` has it
_GGUF_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_END = "<|endoftext|>"
# Of classes that transformers takes for the families here.
_QWEN2 = {"unk_token": _END, "eos_token": _END, "pad_token": _END}
_GPT2 = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def special_tokens(folder: Path, model_type: str, tokenizer: bytes) -> dict[str, str]:
    """Name -> text. `tokenizer`: the folder's tokenizer.json. Raises CheckpointError for a name that is given no
    text."""
    tokenizer_class = read_json_if_there(folder / CONFIG_NAME).get("tokenizer_class")
    named = {**_of_class(tokenizer_class, model_type, tokenizer), **named_in_files(folder)}
    return {name: text for name, text in named.items() if text is not None}


def named_in_files(folder: Path) -> dict[str, str | None]:
    """As `special_tokens`, without what the class of the tokenizer says."""
    return {name: text for file, config in token_files(folder).items() for name, text in _named(config, file)}


def token_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that name tokens; what a later one says counts."""
    config = read_json_if_there(folder / CONFIG_NAME)
    old = {} if "added_tokens_decoder" in config else read_json_if_there(folder / MAP_NAME)
    return {CONFIG_NAME: config, MAP_NAME: old}


def _named(config: Mapping[str, Any], file: str) -> Iterator[tuple[str, str | None]]:
    """None where a token is given as null, which a class's default does not replace."""
    for name in NAMES:
        if name in config:
            yield name, _text(name, config[name], file)
    for name, value in config.items():
        if name.endswith("_token") and name not in NAMES and isinstance(value, str | dict):
            yield name, _text(name, value, file)
    for key in EXTRA:
        extra = config.get(key)
        for name, value in extra.items() if isinstance(extra, dict) else ():
            yield name, _text(name, value, file)


def _text(name: str, value: Any, file: str) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise CheckpointError(f"{file} has {name} {value!r:.60}; it must be a text, or an object with its content")
    return text


def _of_class(tokenizer_class: Any, model_type: str, tokenizer: bytes) -> dict[str, str]:
    """Where a family's tokenizer is always of one class, transformers does not ask what the folder says."""
    name = tokenizer_class.removesuffix("Fast") if isinstance(tokenizer_class, str) else None
    if model_type.startswith("glm"):
        return {}
    if model_type == "qwen2" or name == "Qwen2Tokenizer" or (name is None and model_type.startswith("qwen")):
        return _QWEN2
    if name == "GPT2Tokenizer":
        return _GPT2
    return _LLAMA if name == "LlamaTokenizer" and not _is_byte_level(tokenizer) else {}


def _is_byte_level(tokenizer: bytes) -> bool:
    content = json.loads(tokenizer)
    return any('"ByteLevel"' in json.dumps(content.get(part)) for part in ("pre_tokenizer", "decoder"))


def gguf_special_tokens(metadata: Metadata) -> dict[str, str]:
    """Of a GGUF file. A key that names no token of its vocabulary names nothing, as in llama.cpp."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _GGUF_KEYS.items()}
    return {name: tokens[i] for name, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}
