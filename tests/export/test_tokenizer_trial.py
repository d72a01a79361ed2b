"""A checkpoint's tokenizer that computes for ever on some text is refused at export; those that are published pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_export.checkpoint.tokenizer_trial import try_tokenizer
from autoglm_export.embedder.export import export_embedder
from autoglm_export.errors import CheckpointError
from autoglm_export.export import export

from tests.support.engine.fakes import byte_tokenizer
from tests.support.engine.split_tokenizers import split_only
from tests.support.export.plain_checkpoints import write_folder
from tests.tokenizer.test_tokenizer_patterns import PUBLISHED

pytestmark = pytest.mark.slow

BOMBS = {
    r"(a+)+$": "makes the tokenizers library fail",
    r"(?:a|aa)+b": "makes the tokenizers library fail",
    r"xyz(\w*)*;": "makes the tokenizers library fail",
    r"(\p{L}+\s?)*\?": "makes the tokenizers library fail",
    r"([q-s]+)*z": "makes the tokenizers library fail",
    r"(.*)(.*)(.*)(.*)#": "computes for more than 1 s",
    r"\w+\d+\w+@": "computes for more than 1 s",
}
REPLACED = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}


def content(pattern: str, **parts: Any) -> bytes:
    return json.dumps(split_only(pattern, **parts)).encode()


@pytest.mark.parametrize("pattern", BOMBS)
def test_a_bomb_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        try_tokenizer(content(pattern))
    assert str(refused.value).startswith(f"the pattern {pattern!r} of tokenizer.json {BOMBS[pattern]} on a text of ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_bomb_elsewhere_is_found(part: str) -> None:
    with pytest.raises(CheckpointError, match=r"the pattern '\(a\+\)\+\$' of tokenizer.json makes"):
        try_tokenizer(content(r"\w+", **{part: REPLACED}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_passes(name: str) -> None:
    try_tokenizer(content(PUBLISHED[name]))


def test_whole_tokenizers_pass() -> None:
    try_tokenizer(byte_tokenizer().to_str().encode())
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    unigram = {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [["?", 0.0], ["\u2581", -1.0], ["a", -2.0]],
        "byte_fallback": False,
    }
    try_tokenizer(content("x", pre_tokenizer=metaspace, model=unigram))


@pytest.mark.parametrize("raw", [b"\xff", b"[]", b"{", b"[" * 200_000])
def test_what_is_no_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read"):
        try_tokenizer(raw)


def test_both_exports_try_it_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(content: bytes) -> None:
        raise CheckpointError("tried and refused")

    monkeypatch.setattr("autoglm_export.export.try_tokenizer", refuse)
    monkeypatch.setattr("autoglm_export.embedder.export.try_tokenizer", refuse)
    checkpoint = write_folder(tmp_path / "checkpoint")
    for make in (
        lambda: export(checkpoint, tmp_path / "out", runtime="onnx"),
        lambda: export_embedder("all-minilm-l6-v2", tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match="tried and refused"):
            make()
        assert not (tmp_path / "out").exists()
