"""GGUF files that are damaged, or made to harm: each is read, or refused in a sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.gguf.header import MAX_ENTRIES
from autoglm_export.checkpoint.gguf.tokenizer import build_tokenizer
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.export.gguf.test_files import split
from tests.export.gguf.test_sentencepiece import metadata as sentencepiece_metadata
from tests.export.gguf.test_sentencepiece import write_sentencepiece
from tests.export.test_gguf import tokenizer_metadata
from tests.support.export.gguf_conversion import (
    converted_metadata,
    decoder_tensors,
    write,
    write_model,
    write_projector,
)
from tests.support.export.plain_checkpoints import write_gguf_file
from tests.support.export.tiny_glm4v import PREPROCESSOR, gguf_tokenizer, tiny_glm4v
from tests.support.export.tiny_models import tiny_model


def write_shards(folder: Path) -> None:
    whole = write_gguf_file(folder / "whole.gguf")
    split(whole, 3)
    whole.unlink()


def write_fused(folder: Path) -> None:
    model = tiny_model("glm", head_dim=16)
    write_model(folder / "m.gguf", model, tokenizer_metadata(), fused_qkv=True, kind="Q4_0")


def write_seeing(folder: Path) -> None:
    model = tiny_glm4v()
    write_model(folder / "m.gguf", model, gguf_tokenizer())
    write_projector(folder / "mmproj.gguf", model, PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"])


MODELS: dict[str, Callable[[Path], None]] = {
    "shards": write_shards,
    "fused": write_fused,
    "seeing": write_seeing,
    "sentencepiece": lambda folder: write_sentencepiece(folder / "m.gguf"),
}


def read_whole(checkpoint: Checkpoint) -> None:
    for weights in (checkpoint.weights, checkpoint.vision.weights if checkpoint.vision else {}):
        for name in weights:
            assert np.isfinite(weights[name]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_files_with_changed_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    MODELS[name](tmp_path)
    read_whole(open_checkpoint(tmp_path))
    files, random = sorted(tmp_path.iterdir()), np.random.default_rng(7)
    refused = 0
    for attempt in range(60):
        path = files[attempt % len(files)]
        content = path.read_bytes()
        changed = bytearray(content)
        for place in random.integers(4, min(len(content), 30_000), 2).tolist():
            changed[place] = int(random.integers(256))
        path.write_bytes(changed[: int(random.integers(len(content)))] if attempt % 5 == 0 else changed)
        try:
            read_whole(open_checkpoint(tmp_path))
        except ExportError as error:
            refused += 1
            assert "holds something that no checkpoint does" not in str(error)
        path.write_bytes(content)
    assert refused > 12


@pytest.fixture(scope="module")
def written() -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata, tensors) of a model that can be written again with others."""
    model = tiny_model("glm4", head_dim=16)
    return converted_metadata(model) | tokenizer_metadata(), decoder_tensors(model)


SCALARS = (
    st.integers(0, 2**32 - 1)
    | st.floats(width=32)
    | st.booleans()
    | st.text(max_size=8).filter(lambda text: "\0" not in text)
)
VALUES = SCALARS | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)
KEYS = [
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base", "vocab_size"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.dimension_sections", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor"),
]
OTHERS = [
    *("split.no", "split.count", "split.tensors.count", "general.alignment", "tokenizer.chat_template"),
    *("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"),
    *("tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"),
]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from([*(f"glm4.{key}" for key in KEYS), *OTHERS]), VALUES, min_size=1, max_size=3
    )
)
def test_any_value_of_any_key_is_taken_or_refused(
    changes: dict[str, Any], written: tuple[dict[str, Any], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    metadata, tensors = written
    path = tmp_path_factory.getbasetemp() / "any-value.gguf"
    write(path, "glm4", metadata | changes, tensors)
    try:
        read_whole(open_checkpoint(path))
    except ExportError as error:
        assert not isinstance(error.__cause__, RecursionError | MemoryError)


def test_a_text_that_is_no_utf8_is_named_by_its_key(tmp_path: Path) -> None:
    path = write_gguf_file(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"<tool>", b"<to\xff\xfe>"))
    with pytest.raises(CheckpointError, match=r"the metadata tokenizer\.ggml\.tokens are not UTF-8"):
        open_checkpoint(path)


def test_more_heads_than_dimensions_are_refused(written: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    metadata, tensors = written
    kept = {key: value for key, value in metadata.items() if not key.endswith("_length")}
    sizes = {"glm4.embedding_length": 64, "glm4.context_length": 512, "glm4.feed_forward_length": 96}
    write(tmp_path / "m.gguf", "glm4", kept | sizes | {"glm4.attention.head_count": 128}, tensors)
    with pytest.raises(ExportError, match="head_dim is 0; it must be a whole number of 1"):
        open_checkpoint(tmp_path / "m.gguf")


# ---- headers that lie


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize("what", ["metadata", "tensors"])
def test_more_entries_than_any_model_has_are_refused_before_the_reader_takes_memory(what: str, tmp_path: Path) -> None:
    """Of a file of 30 MB it made 2.4 GB, in half a minute."""
    names, is_tensor = [text(b"%06d" % index) for index in range(MAX_ENTRIES + 1)], what == "tensors"
    tail = struct.pack("<IIQ", 0, 0, 0) if is_tensor else struct.pack("<IB", 0, 1)
    counts = (len(names), 0) if is_tensor else (0, len(names))
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + tail.join([*names, b""]))
    with pytest.raises(CheckpointError, match=rf"m\.gguf announces 65537 {what}; most is 65536"):
        open_checkpoint(path)


def moved(path: Path, name: str, move: Callable[[int, int], int]) -> Path:
    """`move`: (where the tensor lies, where the one before it does) -> where the header then says that it lies."""
    reader = gguf.GGUFReader(path)
    places = {tensor.name: tensor.data_offset - reader.data_offset for tensor in reader.tensors}
    before = max(place for place in places.values() if place < places[name])
    content = bytearray(path.read_bytes())
    at = content.index(text(name.encode())) + 8 + len(name)
    at += 4 + 8 * content[at] + 4
    content[at : at + 8] = move(places[name], before).to_bytes(8, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (lambda own, before: before, "inside of another one"),
        (lambda own, before: own - 32, "inside of another one"),
        (lambda own, before: own + 1, "which is no multiple of its alignment 32"),
        (lambda own, before: 2**64 - 32, r"16384 bytes long, and its data end at \d+"),
        (lambda own, before: 2**40, r"16384 bytes long, and its data end at \d+"),
    ],
    ids=[
        "on the one before",
        "into the one before",
        "between two places",
        "around the end of all numbers",
        "far behind",
    ],
)
def test_a_tensor_at_a_place_that_it_cannot_have_is_named(
    move: Callable[[int, int], int], said: str, written: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = written
    write(tmp_path / "m.gguf", "glm4", metadata, tensors)
    with pytest.raises(CheckpointError, match=rf"the tensor blk\.\d\.\w+\.weight lies at byte \d+ of its data, {said}"):
        open_checkpoint(moved(tmp_path / "m.gguf", "blk.1.attn_q.weight", move))


@pytest.mark.parametrize("alignment", [0, 3, 48])
def test_an_alignment_is_a_power_of_two(
    alignment: int, written: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = written
    write(tmp_path / "m.gguf", "glm4", metadata | {"general.alignment": alignment}, tensors)
    with pytest.raises(CheckpointError, match=f"general.alignment {alignment}; it must be a power of two"):
        open_checkpoint(tmp_path / "m.gguf")


# ---- vocabularies that lie


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_type": [3]}, "has 1 tokenizer.ggml.token_type, and 300 tokens"),
        ({"token_type": 7}, "has 0 tokenizer.ggml.token_type, and 300 tokens"),
        ({"token_type": ["a"] * 300}, "token_type must be finite numbers"),
        ({"tokens": [1, 2]}, "lacks tokenizer.ggml.tokens, a list of texts"),
        ({"merges": [1, 2]}, "lacks tokenizer.ggml.merges, a list of texts"),
    ],
)
def test_vocabularies_of_other_lengths_and_types_are_refused(
    changes: dict[str, Any], said: str, written: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    metadata, tensors = written
    fields = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    write(tmp_path / "m.gguf", "glm4", metadata | fields, tensors)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("vocabulary", [tokenizer_metadata, sentencepiece_metadata])
def test_a_text_of_two_ids_is_refused(vocabulary: Callable[[], dict[str, Any]]) -> None:
    metadata = vocabulary()
    tokens = [*metadata["tokenizer.ggml.tokens"]]
    tokens[6] = tokens[5]
    with pytest.raises(CheckpointError, match="its tokens 5 and 6 are both "):
        build_tokenizer(metadata | {"tokenizer.ggml.tokens": tokens})


@pytest.mark.parametrize("merges", [7, "a b", [1]])
def test_merges_of_a_sentencepiece_vocabulary_are_texts(merges: Any, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "m.gguf", merges=merges)
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.merges must be a list of texts"):
        open_checkpoint(tmp_path / "m.gguf")


def test_special_tokens_are_added_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a call each, 16,000 of them take half a minute, and twice as many two."""
    calls = []
    monkeypatch.setattr(Tokenizer, "add_tokens", lambda self, tokens: calls.append(len(tokens)))
    metadata = tokenizer_metadata()
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    build_tokenizer(metadata | {"tokenizer.ggml.token_type": [3] * num_tokens})
    assert calls == [num_tokens]
