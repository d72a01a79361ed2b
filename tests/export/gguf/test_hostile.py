"""GGUF files that are damaged, or made to harm: each is read, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.gguf.test_files import split
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
