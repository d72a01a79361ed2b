"""GGUF files as people have them: shards, folders, capitals, and every type of block that llama.cpp writes."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from autoglm_cli.home import name_for
from autoglm_export.checkpoint.gguf.file import BLOCK, DECODED, GgufFile
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError
from gguf.quants import dequantize, quantize

from tests.support.export.plain_checkpoints import write_folder, write_gguf_file

TYPES = gguf.GGMLQuantizationType
WIDTH, ROWS = 512, 37


def shard_name(number: int, count: int, name: str = "m") -> str:
    return f"{name}-{number:05}-of-{count:05}.gguf"


def split(path: Path, count: int, name: str = "m", *, all_numbered: int | None = None) -> list[Path]:
    """As gguf-split does it: the metadata are in the first shard, which here has no tensor. `all_numbered`: the wrong
    split.no of all."""
    reader = gguf.GGUFReader(path)
    parts = [[], *np.array_split(np.arange(len(reader.tensors)), count - 1)]
    shards = [path.with_name(shard_name(index + 1, count, name)) for index in range(count)]
    for index, (shard, part) in enumerate(zip(shards, parts, strict=True)):
        writer = gguf.GGUFWriter(shard, "llama" if index == 0 else "")
        if index == 0:
            copy_metadata(reader, writer)
        writer.add_uint16("split.no", index if all_numbered is None else all_numbered)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in (reader.tensors[int(i)] for i in part):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return shards


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_gguf_file(tmp_path / "whole.gguf")


def same_model(path: Path, reference: Path) -> None:
    found, expected = open_checkpoint(path), open_checkpoint(reference)
    assert found.spec == expected.spec
    assert found.tokenizer == expected.tokenizer
    for name, weight in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], weight, err_msg=name)


@pytest.mark.parametrize("count", [2, 5])
def test_any_shard_and_the_folder_name_the_model(count: int, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some model"
    folder.mkdir()
    for shard in split(whole, count):
        shard.rename(folder / shard.name)
    for path in (folder, *folder.iterdir()):
        same_model(path, whole)
    assert open_checkpoint(folder).name == "some model"
    assert open_checkpoint(folder / shard_name(2, count)).name == "m"
    assert name_for(str(folder / shard_name(2, count))) == "m"


@pytest.mark.parametrize("small_first_shard", [False, True])
def test_shards_of_the_library_are_read(small_first_shard: bool, whole: Path, tmp_path: Path) -> None:
    """As llama.cpp's converters write them."""
    (tmp_path / "shards").mkdir()
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(
        tmp_path / "shards" / "big.gguf", "llama", split_max_tensors=5, small_first_shard=small_first_shard
    )
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list((tmp_path / "shards").iterdir())) > 3
    same_model(tmp_path / "shards", whole)


@pytest.mark.parametrize("suffix", [".GGUF", ".gguf", ".Gguf"])
def test_the_suffix_may_be_in_capitals(suffix: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loud"
    folder.mkdir()
    path = Path(shutil.copy(whole, folder / f"MODEL-Q8{suffix}"))
    same_model(path, whole)
    same_model(folder, whole)
    assert open_checkpoint(path).name == name_for(str(path)) == "MODEL-Q8"


def test_a_missing_shard_is_named(whole: Path) -> None:
    shards = split(whole, 4)
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=r"lacks m-00003-of-00004\.gguf of 4 shards"):
        open_checkpoint(shards[0])
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=r"lacks m-00001-of-00004\.gguf and 1 more of 4 shards"):
        open_checkpoint(shards[3])


def test_shards_that_are_not_what_their_names_say(whole: Path, tmp_path: Path) -> None:
    first, second, third = split(whole, 3)
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(
        CheckpointError,
        match=r"m-00002-of-00003\.gguf says split\.no 2 and split\.count 3; by its name they are 1 and 3",
    ):
        open_checkpoint(first)
    second.write_bytes(kept)
    lonely = Path(shutil.copy(first, tmp_path / "lonely.gguf"))
    with pytest.raises(CheckpointError, match=r"lonely\.gguf says split\.no 0 and split\.count 3; by its name"):
        open_checkpoint(lonely)
    same_model(first, whole)


@pytest.mark.parametrize("name", ["m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-00000-of-00000.gguf"])
def test_a_number_beyond_the_count_is_refused(name: str, whole: Path) -> None:
    whole.rename(whole.with_name(name))
    with pytest.raises(CheckpointError, match=f"{name} is named as shard"):
        open_checkpoint(whole.with_name(name))


def test_shards_of_two_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = split(write_gguf_file(tmp_path / "a" / "w.gguf"), 3)
    other = split(write_gguf_file(tmp_path / "b" / "w.gguf", {"extra": np.ones(3, np.float32)}), 3)
    shutil.copy(other[1], ours[1])
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is a shard of another model: its split"):
        open_checkpoint(ours[0])
    same_layout = split(write_gguf_file(tmp_path / "b" / "w.gguf"), 3, all_numbered=1)
    shutil.copy(same_layout[2], ours[1])
    with pytest.raises(CheckpointError, match=r"the tensor .* is in m-00003-of-00003\.gguf and in a shard before it"):
        open_checkpoint(ours[0])


def test_a_folder_with_several_models_asks_for_one(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"holds several models; name one of them: other\.gguf, whole\.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "other.gguf").rename(tmp_path / ".other.gguf")  # as a browser that still loads it
    same_model(tmp_path, whole)


def test_weights_in_safetensors_go_first(whole: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "both")
    shutil.copy(whole, folder / "m.gguf")
    assert open_checkpoint(folder).source == "both"
    (folder / "model.safetensors").unlink()  # a folder of GGUF files may have a config.json
    assert open_checkpoint(folder).source == "m.gguf"
    (folder / "m.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(folder)


# ---- types of blocks


def blocks_of(kind: str, rng: np.random.Generator) -> Any:
    """Rows of blocks: of random numbers where the library quantises, else of random bytes with finite scales."""
    try:
        return quantize(rng.normal(0, 0.1, (ROWS, WIDTH)).astype(np.float32), TYPES[kind])
    except NotImplementedError:
        size, num_bytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
        while True:  # until no scale is infinite
            blocks = rng.integers(0, 256, (ROWS * WIDTH // size, num_bytes), dtype=np.uint8)
            with np.errstate(all="ignore"):
                bad = ~np.isfinite(dequantize(blocks, TYPES[kind])).all(axis=-1)
            blocks[bad] = blocks[~bad][0]
            return blocks.reshape(ROWS, -1)


def write_tensors(path: Path, tensors: dict[str, tuple[Any, str]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", DECODED)
def test_blocks_are_read_as_the_reference_reads_them(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Bit by bit, in blocks of any number of rows, and any slice of them."""
    blocks = blocks_of(kind, np.random.default_rng(3))
    path = write_tensors(tmp_path / "m.gguf", {"w": (blocks, kind), "v": (blocks[0], kind)})
    with np.errstate(all="ignore"):
        expected = np.asarray(dequantize(blocks, TYPES[kind]), np.float32)
    assert np.unique(expected).size > 3
    for size in (1, 5 * WIDTH, 1 << 22):
        monkeypatch.setattr("autoglm_export.checkpoint.gguf.file.BLOCK", size)
        file = GgufFile(path)
        for rows in (slice(None), slice(7, 30), slice(36, 37), slice(0, 0)):
            assert file.read("w", rows).tobytes() == expected[rows].tobytes()
        assert file.read("v", slice(3, 500)).tobytes() == expected[0, 3:500].tobytes()


def test_a_large_tensor_is_not_held_twice(tmp_path: Path) -> None:
    blocks = np.tile(blocks_of("Q4_K", np.random.default_rng(3)), (512, 1))
    file = GgufFile(write_tensors(tmp_path / "m.gguf", {"w": (blocks, "Q4_K")}))
    file.read("w", slice(0, 1))
    tracemalloc.start()
    weights = file.read("w", slice(None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weights.nbytes + 4 * 4 * BLOCK


def test_every_other_type_is_refused_by_name(tmp_path: Path) -> None:
    others = sorted({kind.name for kind in TYPES} - set(DECODED))
    assert {"F64", "I32", "Q8_1", "Q8_K"} <= set(others)
    for kind in others:
        size, num_bytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
        path = write_tensors(tmp_path / "m.gguf", {"w": (np.zeros((2, 256 // size * num_bytes), np.uint8), kind)})
        with pytest.raises(CheckpointError, match=f"the tensor w has type {kind}, which has no decoder"):
            GgufFile(path)


@pytest.mark.parametrize("number", [4, 5, 36, 1000])
def test_a_type_without_a_name_is_refused_by_number(number: int, tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.gguf", {"tensor name": (np.zeros((2, 32), np.float32), "F32")})
    content = bytearray(path.read_bytes())
    place = content.index(b"tensor name") + len(b"tensor name") + 4 + 16
    content[place : place + 4] = number.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ExportError, match=f"has a tensor of the unknown type {number}"):
        GgufFile(path)
