"""Where answers end: what a folder or a GGUF file says, and what is known of its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_export.checkpoint.generation.end_tokens import KNOWN_ENDS, gguf_end_tokens
from autoglm_export.checkpoint.gguf.tokenizer import build_tokenizer
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError

from tests.export.test_gguf import tokenizer_metadata
from tests.support.export.plain_checkpoints import write_folder, write_gguf_file

LETTERS = ["a", "b", "c"]


def ends_of(*specials: str, **keys: int) -> list[str]:
    """The texts of the end tokens of a GGUF file whose vocabulary is LETTERS and `specials`; its keys are without
    `_token_id`."""
    tokens = [*LETTERS, *specials]
    metadata: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in keys.items()}
    found = gguf_end_tokens({"tokenizer.ggml.tokens": tokens, **metadata}, len(tokens))
    return [tokens[token_id] for token_id in found]


# specials of a vocabulary, its keys, the ends: the first is the one that the file itself names first
VOCABULARIES: dict[str, tuple[tuple[str, ...], dict[str, int], list[str]]] = {
    "ChatML beside another end": (
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"eos": 3},
        ["<|endoftext|>", "<|im_end|>"],
    ),
    "the turn's end alone is named": (("<|endoftext|>", "<|im_end|>"), {"eos": 4}, ["<|im_end|>", "<|endoftext|>"]),
    "Llama 3": (
        ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>"),
        {"eos": 3},
        ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"],
    ),
    "no key at all": (("<start_of_turn>", "<end_of_turn>"), {}, ["<end_of_turn>"]),
    "keys of tokens that nobody knows": (("[A]", "[B]", "[C]"), {"eos": 3, "eot": 4, "eom": 5}, ["[A]", "[B]", "[C]"]),
    "Harmony, whose messages end at <|end|>": (
        ("<|return|>", "<|call|>", "<|end|>"),
        {"eos": 3, "eot": 5},
        ["<|return|>", "<|call|>"],
    ),
    "Solar, likewise": (("<|flush|>", "<|calls|>", "<|end|>"), {"eos": 3}, ["<|flush|>", "<|calls|>"]),
    "Phi-3, whose answers end at <|end|>": (("<|endoftext|>", "<|end|>"), {"eos": 3}, ["<|endoftext|>", "<|end|>"]),
    "Qwen's marks of code": (
        ("<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
        {"eos": 3},
        ["<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
    ),
    "a mark of code that a key names": (("[E]", "<fim_pad>", "[P]"), {"eos": 3, "fim_pad": 5}, ["[E]", "[P]"]),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_gguf_vocabulary_ends_where_llama_cpp_ends(case: str) -> None:
    specials, keys, expected = VOCABULARIES[case]
    assert ends_of(*specials, **keys) == expected


@pytest.mark.parametrize("text", sorted(KNOWN_ENDS))
def test_a_known_end_is_no_text_whatever_the_file_calls_it(text: str) -> None:
    """Its own vocabulary calls it a normal token; llama.cpp reads it as a control token."""
    metadata = tokenizer_metadata()
    others = ["[OTHER]" if token == text else token for token in metadata["tokenizer.ggml.tokens"]]
    place = others.index("[PAD270]")
    metadata["tokenizer.ggml.tokens"] = [*others[:place], text, *others[place + 1 :]]
    metadata["tokenizer.ggml.token_type"][place] = 1
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.encode(f"a{text}ab").ids[1:] == [place, 258]
    assert tokenizer.decode([258, place]) == "ab"
    assert place in gguf_end_tokens(metadata, 300)


def test_a_gguf_file_without_any_end_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no answer would end"):
        ends_of("<|im_start|>")
    with pytest.raises(CheckpointError, match=r"fim_pad_token_id is 9; the model's ids are 0 \.\.\. 3"):
        ends_of("<|im_end|>", fim_pad=9)


def test_a_gguf_file_is_opened_with_its_ends(tmp_path: Path) -> None:
    metadata = tokenizer_metadata()
    metadata["tokenizer.ggml.tokens"][270] = "<|im_end|>"
    assert open_checkpoint(write_gguf_file(tmp_path / "m.gguf", **metadata)).eos_token_ids == (256, 270)


# files of a folder -> end tokens; its tokenizer has <|end|> 256, <|user|> 257, <|assistant|> 258
FOLDERS: dict[str, tuple[dict[str, dict[str, Any]], tuple[int, ...]]] = {
    "config alone": ({"config": {"eos_token_id": 257}}, (257,)),
    "generation config before it": ({"config": {"eos_token_id": 257}, "generation": {"eos_token_id": 256}}, (256,)),
    "a list": ({"generation": {"eos_token_id": [258, 257]}}, (258, 257)),
    "a generation config that says nothing": ({"config": {"eos_token_id": 257}, "generation": {}}, (257,)),
    "tokenizer_config alone": ({"tokenizer": {"eos_token": "<|end|>"}}, (256,)),
    "an object there": ({"tokenizer": {"eos_token": {"content": "<|user|>", "__type": "AddedToken"}}}, (257,)),
    "beside another": ({"config": {"eos_token_id": 257}, "tokenizer": {"eos_token": "<|end|>"}}, (257, 256)),
    "both the same": ({"generation": {"eos_token_id": [256, 257]}, "tokenizer": {"eos_token": "<|end|>"}}, (256, 257)),
    "the old map of special tokens": ({"map": {"eos_token": {"content": "<|end|>", "lstrip": False}}}, (256,)),
    "which counts more": ({"tokenizer": {"eos_token": "<|user|>"}, "map": {"eos_token": "<|end|>"}}, (256,)),
    "but not beside a decoder": (
        {"tokenizer": {"eos_token": "<|user|>", "added_tokens_decoder": {}}, "map": {"eos_token": "<|end|>"}},
        (257,),
    ),
    "a token that the tokenizer lacks": (
        {"config": {"eos_token_id": 257}, "tokenizer": {"eos_token": "<|other|>"}},
        (257,),
    ),
}
FILES = {
    "generation": "generation_config.json",
    "tokenizer": "tokenizer_config.json",
    "map": "special_tokens_map.json",
}


def folder_of(path: Path, files: dict[str, dict[str, Any]]) -> Path:
    folder = write_folder(path, **{"eos_token_id": None, **files.get("config", {})})
    for name, file in FILES.items():
        if name in files:
            (folder / file).write_text(json.dumps(files[name]))
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_ends_where_its_files_say(case: str, tmp_path: Path) -> None:
    files, expected = FOLDERS[case]
    assert open_checkpoint(folder_of(tmp_path / "m", files)).eos_token_ids == expected


# files of a folder, a template, what is named; the vocabulary has <|end|>, and the tokens that the files add
UNMET: dict[str, tuple[dict[str, dict[str, Any]], str, tuple[str, ...]]] = {
    "an end that no file names": ({"config": {"eos_token_id": 257}}, "{{ m }}<|end|>", ("<|end|>",)),
    "one that a file names": ({"config": {"eos_token_id": 256}}, "{{ m }}<|end|>", ()),
    "one that the template does not write": ({"config": {"eos_token_id": 257}}, "{{ m }}", ()),
    "one that is no token": ({"config": {"eos_token_id": 256}}, "{{ m }}<|im_end|>", ()),
    "the end of a message alone": (
        {
            "config": {"eos_token_id": 259},
            "tokenizer": {
                "added_tokens_decoder": {
                    "259": {"content": "<|return|>", "special": True},
                    "260": {"content": "<|call|>", "special": True},
                }
            },
        },
        "{{ m }}<|end|>",
        (),
    ),
}


@pytest.mark.parametrize("case", UNMET)
def test_an_end_that_nobody_names_is_told(case: str, tmp_path: Path) -> None:
    files, template, unmet = UNMET[case]
    folder = folder_of(tmp_path / "m", files)
    (folder / "chat_template.jinja").write_text(template)
    generation = open_checkpoint(folder).generation
    assert generation.unmet_ends == unmet
    assert (generation.note or "").count("its chat template writes <|end|>, where no answer ends") == len(unmet)


@pytest.mark.parametrize("files", [{}, {"tokenizer": {"eos_token": "<|other|>"}}, {"tokenizer": {"eos_token": None}}])
def test_a_folder_without_any_end_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no answer would end"):
        open_checkpoint(folder_of(tmp_path / "m", files))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json has eos_token \['<\|end\|>'\]; it must be"):
        open_checkpoint(folder_of(tmp_path / "m", {"tokenizer": {"eos_token": ["<|end|>"]}}))
