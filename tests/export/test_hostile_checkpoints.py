"""Checkpoints that were made to harm: each is refused in a sentence, and before its numbers cost time or memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.gguf.header import MAX_ELEMENTS, check_header
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.safetensors import read_header
from autoglm_export.embedder.export import read_checkpoint
from autoglm_export.errors import CheckpointError, ExportError, TensorError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.export.plain_checkpoints import config_of, raw_safetensors, write_folder, write_gguf_file
from tests.support.export.tiny_decoders import SPECS
from tests.support.export.tiny_models import edit_json

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(5, np.float32)
DEEP = 200_000


def offsets(name: str, begin: Any, end: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(data_offsets=[begin, end])


def set_shape(name: str, *shape: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(shape=list(shape))


MISPLACED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative": (offsets("b", -20, 0), "data_offsets \\[-20, 0\\]"),
    "negative, at the header": (offsets("a", -24, 0), "data_offsets"),
    "backwards": (offsets("b", 24, 4), "has -20 bytes"),
    "overlapping": (offsets("b", 20, 40), "the tensor b in m.safetensors overlaps a"),
    "the same place": (offsets("b", 0, 20), "overlaps"),
    "a gap": (lambda header: header.pop("a"), "the tensor b in m.safetensors leaves a gap behind the header"),
    "not to the end": (lambda header: header.pop("b"), "and its tensors end at byte"),
    "past the end": (offsets("b", 28, 48), "is truncated: the tensor b ends at byte"),
    "fractions": (offsets("b", 24.0, 44.0), "is damaged"),
    "texts": (offsets("b", "24", "44"), "is damaged"),
    "true": (offsets("b", True, 44), "is damaged"),
    "three": (lambda header: header["b"].update(data_offsets=[24, 44, 44]), "is damaged"),
    "a negative shape": (set_shape("a", -2, -3), "is damaged"),
    "a fraction of a row": (set_shape("b", 5.0), "is damaged"),
    "an endless shape": (set_shape("b", 10**30), "not those of F32"),
    "a shape of nothing": (set_shape("b", 10**9, 0), "not those of F32"),
    "another type's size": (lambda header: header["b"].update(dtype="I64"), "not those of I64"),
    "no dtype": (lambda header: header["b"].pop("dtype"), "is damaged"),
    "a record of numbers": (lambda header: header.update(b=[1, 2]), "is damaged"),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_tensors_lie_one_behind_the_other(case: str, tmp_path: Path) -> None:
    change, message = MISPLACED[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors({"a": A, "b": B}))
    assert read_header(path).keys() == {"a", "b"}
    path.write_bytes(raw_safetensors({"a": A, "b": B}, change))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_nothing_lies_behind_the_tensors_and_empty_ones_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors({"a": A, "none": np.zeros((0, 3), np.float32), "b": B}))
    assert read_header(path)["none"].shape == (0, 3)
    path.write_bytes(raw_safetensors({"a": A}, behind=b"\0"))
    with pytest.raises(TensorError, match=r"has \d+ bytes, and its tensors end at byte"):
        read_header(path)


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "7", "null", '"x"', '{"a": 1e999}', "\xff"])
def test_a_header_that_is_no_list_of_tensors(text: str, tmp_path: Path) -> None:
    content = text.encode("latin-1")
    (tmp_path / "m.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(CheckpointError, match=r"the header of m\.safetensors is damaged"):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("text", ["[" * DEEP, '{"chat_template":' * DEEP])
def test_deep_json_is_a_sentence(name: str, text: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} is not valid JSON"):
        open_checkpoint(tmp_path)


def test_deep_json_of_an_embedder_is_a_sentence(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("[" * DEEP)
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config", ['{"model_type": "bert"}', '{"hidden_size": [], "max_position_embeddings": 8}', "{}"]
)
def test_a_config_of_an_embedder_without_its_numbers_is_a_sentence(config: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(config)
    with pytest.raises(CheckpointError, match="holds something that no embedder does"):
        read_checkpoint(tmp_path)


def test_more_layers_than_tensors_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, num_hidden_layers=2**31 - 1)
    with pytest.raises(
        TensorError, match="the config has 2147483647 layers, of at least 6 tensors each; the checkpoint"
    ):
        open_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


NUMBERS: dict[str, Any] = {
    "endless": 10**400,
    "infinite": float("inf"),
    "no number": float("nan"),
    "negative": -1,
    "zero": 0,
    "text": "48",
    "true": True,
    "list": [48],
    "object": {"a": 1},
    "large": 2**31 - 1,
    "huge": 2**62,
    "tiny": 1e-300,
}
WANTED = sorted(config_of(SPECS["llama"]))


@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_of_a_config_is_refused_in_a_sentence_or_does_no_harm(value: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    original = (tmp_path / "config.json").read_text()
    others = ("rope_scaling", "rope_parameters", "text_config", "architectures", "layer_types", "bos_token_id")
    for key in (*WANTED, *others, "tie_word_embeddings", "attention_bias"):
        (tmp_path / "config.json").write_text(json.dumps({**json.loads(original), key: NUMBERS[value]}))
        try:
            checkpoint = open_checkpoint(tmp_path)
        except ExportError:
            continue
        assert np.isfinite(checkpoint.spec.rope.inverse_frequencies()).all(), key


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *WANTED,
        "rope_scaling",
        "rope_parameters",
        "architectures",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "eos_token_id",
        "bos_token_id",
        "text_config",
        "hidden_act",
        "quantization_config",
    ]
)
ROPE = st.dictionaries(
    st.sampled_from(
        ["rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "mrope_section", "rope_theta"]
    ),
    JSON | st.sampled_from(["llama3", "linear", "mrope", 1, 4.0]),
)


@pytest.mark.slow
@settings(max_examples=250)
@given(st.sampled_from(["llama", "qwen2", "qwen3", "glm4", "glm4v"]), st.dictionaries(KEYS, JSON | ROPE, max_size=4))
def test_random_configs_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, family: str, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "random-config"
    if not folder.exists():
        write_folder(folder)
    changed = {**config_of(SPECS["llama"]), "vocab_size": 300, "hidden_size": 64, "model_type": family, **changes}
    (folder / "config.json").write_text(json.dumps(changed))
    try:
        open_checkpoint(folder)
    except ExportError as error:
        assert not isinstance(error.__cause__, RecursionError | MemoryError)


def test_a_chat_template_is_a_text_of_some_size(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("a" * (1 << 20))
    assert open_checkpoint(tmp_path).templates.default is not None
    (tmp_path / "chat_template.jinja").write_text("a" * ((1 << 20) + 1))
    with pytest.raises(CheckpointError, match="a text of at most 1048576 bytes"):
        open_checkpoint(tmp_path)
    write_gguf_file(tmp_path / "m.gguf", **{"tokenizer.chat_template": 7})
    with pytest.raises(CheckpointError, match="a text of at most 1048576 bytes"):
        open_checkpoint(tmp_path / "m.gguf")


# ---- GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_of(*fields: bytes, num_fields: int | None = None, num_tensors: int = 0, behind: bytes = b"") -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, num_tensors, len(fields) if num_fields is None else num_fields)
    return head + b"".join(fields) + behind


def array_of(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("a") + struct.pack("<IIQ", 9, kind, count) + content


NESTED = text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000
GGUF: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is truncated or no GGUF file: it has 0 bytes"),
    "another format": (b"PK" + bytes(40), "does not begin with GGUF"),
    "version": (struct.pack("<4sIQQ", b"GGUF", 99, 0, 0), "version 99; supported are 2 and 3"),
    "fields": (gguf_of(num_fields=2**63), "announces 9223372036854775808 metadata, and 0 bytes are left"),
    "tensors": (gguf_of(num_tensors=2**40), "announces 1099511627776 tensors"),
    "an endless name": (gguf_of(struct.pack("<Q", 2**60) + bytes(40)), "announces 1152921504606846976 values"),
    "an endless array": (gguf_of(array_of(4, 2**50)), "announces 1125899906842624 values"),
    "an endless array of bytes": (gguf_of(array_of(0, 2**62, bytes(64))), "and 64 bytes are left"),
    "an endless array of texts": (gguf_of(array_of(8, 2**40, bytes(64))), "announces 1099511627776 values"),
    "many values": (gguf_of(array_of(0, MAX_ELEMENTS + 1, bytes(MAX_ELEMENTS + 1))), "has lists of 2097153 values"),
    "many values in all": (
        gguf_of(*[array_of(0, MAX_ELEMENTS // 2, bytes(MAX_ELEMENTS // 2))] * 3),
        "has lists of 3145728 values",
    ),
    "lists in lists": (gguf_of(NESTED), "metadata of lists in lists"),
    "a type": (gguf_of(text("a") + struct.pack("<I", 77) + bytes(8)), "unknown type 77"),
    "a type of an array": (gguf_of(array_of(77, 1, bytes(8))), "unknown type 77"),
    "dimensions": (
        gguf_of(num_tensors=1, behind=text("t") + struct.pack("<I", 2**31) + bytes(64)),
        "a tensor of 2147483648 dimensions",
    ),
    "cut off": (gguf_of(text("a") + struct.pack("<I", 4)), "announces 1 values, and 0 bytes are left"),
}


@pytest.mark.parametrize("case", GGUF)
def test_counts_of_a_gguf_file_are_compared_with_its_size(case: str, tmp_path: Path) -> None:
    content, message = GGUF[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert message in str(caught.value)


def test_layers_of_a_gguf_file_are_compared_with_its_tensors(tmp_path: Path) -> None:
    content = write_gguf_file(tmp_path / "m.gguf").read_bytes()
    key = text("llama.block_count") + struct.pack("<I", 4)
    place = content.index(key) + len(key)
    (tmp_path / "m.gguf").write_bytes(content[:place] + struct.pack("<I", 2**31 - 1) + content[place + 4 :])
    with pytest.raises(TensorError, match="the config has 2147483647 layers"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.slow
def test_a_gguf_file_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    """No traceback, and nothing that takes longer than the file is large."""
    path = write_gguf_file(tmp_path / "m.gguf")
    content, random = path.read_bytes(), np.random.default_rng(3)
    end = content.index(b"blk.0.")  # of the metadata, without tensors and padding
    refused = 0
    for place in random.integers(4, end + 2000, 60).tolist():
        changed = bytearray(content)
        changed[place] = int(random.integers(256))
        path.write_bytes(changed)
        try:
            open_checkpoint(path)
        except ExportError:
            refused += 1
    assert refused > 5


def test_a_published_vocabulary_fits(tmp_path: Path) -> None:
    """Gemma's, the largest: tokens, scores and types of 262,144, and merges of 514,906."""
    numbers = 2 * 262_144
    texts = 262_144 + 514_906
    assert numbers + texts < MAX_ELEMENTS
    (tmp_path / "m.gguf").write_bytes(gguf_of(array_of(8, 1000, text("ab") * 1000), array_of(6, 1000, bytes(4000))))
    check_header(tmp_path / "m.gguf")
