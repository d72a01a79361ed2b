"""Tokens that a folder names beside tokenizer.json: texts have transformers' ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_export.checkpoint.generation.added_tokens import with_added_tokens
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.support.export.plain_checkpoints import write_folder

WORDS = ("<x>", "<y>", "<k>", "<z>", "<w>", "ab")
TEXT = "a<x> <y>\n<z><w><k> ab <x>b"


def tokenizer_json() -> bytes:
    """<x> and <y> are words of the vocabulary, <k> is an added token; of <z> and <w> it knows nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<x>", "<y>", "ab"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<k>", special=True)])
    return tokenizer.to_str().encode()


TOKENIZER = tokenizer_json()


def decoder(*texts: str, **flags: bool) -> dict[str, Any]:
    """Of `added_tokens_decoder`; the ids are those of the vocabulary and behind it."""
    ids = {"<x>": 256, "<y>": 257, "<k>": 259, "<z>": 260, "<w>": 261}
    return {str(ids[text]): {"content": text, **flags} for text in texts}


CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a named one": {"tokenizer_config.json": {"eos_token": "<x>"}},
    "an image's": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<y>"}, "audio_token": "<k>"}},
    "a list": {"tokenizer_config.json": {"additional_special_tokens": ["<y>", "<k>"]}},
    "the decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": decoder("<x>", "<y>", "<z>", special=True),
            "eos_token": "<x>",
        }
    },
    "and its flags": {
        "tokenizer_config.json": {"added_tokens_decoder": decoder("<x>", "<y>", special=False, lstrip=True)}
    },
    "new and not special": {
        "tokenizer_config.json": {"added_tokens_decoder": decoder("<z>", "<w>", normalized=False, rstrip=True)}
    },
    "the other flags": {"tokenizer_config.json": {"added_tokens_decoder": decoder("<k>", special=True, lstrip=True)}},
    "other flags than before": {"tokenizer_config.json": {"added_tokens_decoder": decoder("<k>", special=False)}},
    "the old files": {
        "tokenizer_config.json": {},
        "added_tokens.json": {"<w>": 261, "<z>": 260, "<k>": 259},
        "special_tokens_map.json": {"eos_token": "<y>", "additional_special_tokens": ["<x>"]},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_text_has_transformers_ids(case: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    for name, content in CASES[case].items():
        (tmp_path / name).write_text(json.dumps(content))
    reference = AutoTokenizer.from_pretrained(tmp_path, config=AutoConfig.for_model("llama"))
    ours = Tokenizer.from_str(with_added_tokens(TOKENIZER, tmp_path, 300).decode())
    ids = ours.encode(TEXT).ids
    assert ids == reference(TEXT).input_ids
    for skipped in (False, True):
        assert ours.decode(ids, skip_special_tokens=skipped) == reference.decode(ids, skip_special_tokens=skipped)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=4), st.lists(st.sampled_from(WORDS), max_size=3))
def test_a_name_alone_makes_no_token_that_there_is_not(tmp_path: Path, named: list[str], listed: list[str]) -> None:
    names = ("eos_token", "pad_token", "unk_token", "image_token")
    config = {**dict(zip(names, named, strict=False)), "extra_special_tokens": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = with_added_tokens(TOKENIZER, tmp_path, 300)
    before, after = (Tokenizer.from_str(content.decode()) for content in (TOKENIZER, found))
    assert before.get_vocab() == after.get_vocab()
    assert with_added_tokens(found, tmp_path, 300) == found
    added = {token.content for token in after.get_added_tokens_decoder().values()}
    assert added == {"<k>"} | {word for word in (*named, *listed) if word in before.get_vocab()}


@pytest.mark.parametrize(("rows", "tokens"), [(262, {"<z>": 260, "<w>": 261}), (261, {"<z>": 260}), (260, {})])
def test_no_id_is_without_a_row_of_the_model(rows: int, tokens: dict[str, int], tmp_path: Path) -> None:
    config = {"added_tokens_decoder": decoder("<w>", "<z>")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = Tokenizer.from_str(with_added_tokens(TOKENIZER, tmp_path, rows).decode()).get_vocab()
    assert {text: found[text] for text in ("<z>", "<w>") if text in found} == tokens


def test_a_folder_that_names_nothing_new_keeps_its_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|user|>"}))
    assert open_checkpoint(folder).tokenizer == (folder / "tokenizer.json").read_bytes()


def test_an_end_may_be_among_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", eos_token_id=None)
    listed = {"259": {"content": "<|stop|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|stop|>", "added_tokens_decoder": listed}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.eos_token_ids == (259,)
    assert Tokenizer.from_str(checkpoint.tokenizer.decode()).encode("a<|stop|>").ids[1:] == [259]


@pytest.mark.parametrize("wrong", [[], {"x": {"content": "a"}}, {"1": {"special": True}}, {"1": "a"}])
def test_a_decoder_that_is_none_is_refused(wrong: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": wrong}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json has the added_tokens_decoder .*; it must be"):
        with_added_tokens(TOKENIZER, tmp_path, 300)
