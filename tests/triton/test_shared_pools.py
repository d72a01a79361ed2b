"""How much shared memory a server needs, and what is said where there is less; a full /dev/shm never ends a process."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from autoglm_cli.server.shared_pools import SharedPools
from autoglm_client.exceptions import LocalServerError
from autoglm_client.transport import segment as segment_module
from autoglm_client.transport.segment import Block, Segment
from autoglm_engine.errors import Unavailable
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.system.shared_pools import (
    MIB,
    bytes_of_images,
    check_free,
    check_size,
    kept_bytes,
    needed_bytes,
    num_python_models,
    pool_arguments,
    pool_bytes,
    room_bytes,
)
from autoglm_engine.triton import model_config as adapter
from autoglm_engine.triton.board import file as board_file
from autoglm_engine.triton.board.acks import AckBoard, cells_for

from tests.support.engine.small_service import write_artifact
from tests.support.vision.settings import vision_settings

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
PAGE = 4096
Memory = Callable[..., None]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Has /dev/shm be so many MiB large, of which so many are free."""

    def have(size: float, free: float | None = None) -> None:
        available = size if free is None else free
        found = SimpleNamespace(f_frsize=PAGE, f_blocks=int(size * 256), f_bavail=int(available * 256))
        monkeypatch.setattr(os, "statvfs", lambda folder: found)

    return have


# ---- the size


@pytest.mark.parametrize(
    ("max_length", "mebibytes"), [(0, 8), (1024, 8), (32_768, 8), (65_536, 8), (131_072, 12), (1_000_000, 66)]
)
def test_a_pool_is_as_large_as_the_longest_text_needs(max_length: int, mebibytes: int) -> None:
    assert pool_bytes(max_length) == mebibytes * MIB


def test_only_a_pool_that_does_not_grow_bounds_an_answer() -> None:
    assert (room_bytes(MIB), kept_bytes(MIB), room_bytes(0), kept_bytes(0)) == (None,) * 4, "Triton's own, which grows"
    assert (room_bytes(8 * MIB), kept_bytes(8 * MIB)) == (7.75 * MIB, 2 * MIB)
    assert room_bytes(64 * MIB) == 63.75 * MIB, "what an operator gave"


def test_the_repositorys_models_fit_into_what_docker_gives() -> None:
    assert num_python_models(REPOSITORY) == 5
    board = board_file.file_bytes(cells_for(num_slots=64, max_queue=EngineSettings().max_queue))
    assert needed_bytes(5, 131_072, board) < 64 * MIB


def test_every_model_that_clients_reach_takes_one_request_at_a_time() -> None:
    """What does not fit into shared memory is refused with all that is in its batch."""
    for model in ("autoglm", "tokenizer", "engine", "detokenizer", "embedder", "vision"):
        config = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
        assert re.search(r"^max_batch_size: 1\b", config, flags=re.MULTILINE), model


def test_a_pools_growth_is_no_size_of_a_file(tmp_path: Path) -> None:
    """So Triton's call fails at once, on every file system, and takes no memory."""
    default, growth = (int(argument.rpartition("=")[2]) for argument in pool_arguments(pool_bytes(1024)))
    assert growth == 2**63 - 1, "Triton reads it as a number of 64 bits"
    with (tmp_path / "pool").open("wb") as file, pytest.raises((OSError, OverflowError)):
        os.posix_fallocate(file.fileno(), 0, (default + growth + 2**63) % 2**64 - 2**63)


@pytest.mark.parametrize("check", [check_size, check_free])
def test_too_little_is_one_sentence_with_both_sizes_and_the_remedy(check: Any, memory: Memory) -> None:
    memory(32)
    check(32 * MIB, Path("/shm"))
    memory(31.5)
    with pytest.raises(Unavailable) as refusal:
        check(32 * MIB, Path("/shm"))
    said = str(refusal.value)
    assert said.startswith("the server needs 32.0 MiB of shared memory, and 31.5 MiB are ")
    assert "in /shm; give it more: `--shm-size` of Docker" in said and "emptyDir of medium Memory" in said


def test_what_is_taken_counts_before_the_start_and_not_after_it(memory: Memory) -> None:
    memory(64, free=0)
    check_size(32 * MIB, Path("/shm"))
    with pytest.raises(Unavailable, match=r"0\.0 MiB are free"):
        check_free(32 * MIB, Path("/shm"))


def test_memory_without_a_limit_is_enough(memory: Memory) -> None:
    memory(0)
    check_size(32 * MIB, Path("/shm"))
    check_free(32 * MIB, Path("/shm"))


def test_a_server_is_not_started_where_it_has_no_room(tmp_path: Path, memory: Memory) -> None:
    write_artifact(tmp_path / "artifact")
    pools = SharedPools.of(REPOSITORY, [(tmp_path / "artifact", 1_000_000)])
    assert pools.board_bytes == 8 * (64 + 1 + 4 + 2_000_000 + 1024), "the settings count"
    assert pools.arguments == pool_arguments(8 * MIB)
    memory(64)
    pools.check(tmp_path)
    memory(64, free=40)
    with pytest.raises(LocalServerError, match=r"needs 55\.3 MiB of shared memory, and 40\.0 MiB are free"):
        pools.check(tmp_path)


def test_the_engine_looks_too(tmp_path: Path, memory: Memory) -> None:
    for model in ("engine", "tokenizer"):
        (tmp_path / model).mkdir(exist_ok=True)
        (tmp_path / model / "config.pbtxt").write_text(f'name: "{model}"\nbackend: "python"\n')
    artifact = tmp_path / "engine" / "1" / "artifact"
    write_artifact(artifact)
    memory(17, free=0)
    adapter.check_shared_memory(tmp_path, artifact, plain_settings(), tmp_path)
    memory(12)
    with pytest.raises(Unavailable, match=r"needs 16\.0 MiB of shared memory, and 12\.0 MiB are there in"):
        adapter.check_shared_memory(tmp_path, artifact, plain_settings(), tmp_path)


def test_the_container_computes_the_same(tmp_path: Path) -> None:
    serve = _container_script()
    for max_length in (1, 1024, 65_536, 65_537, 131_072, 1_000_000):
        (tmp_path / "manifest.json").write_text(json.dumps({"max_length": max_length}))
        assert serve.pool_bytes(tmp_path) == pool_bytes(max_length)
        for vision in (
            vision_settings(),
            vision_settings(max_pixels=9_633_792, hidden_size=4096),
            vision_settings(frames=1),
        ):
            raw = {"max_length": max_length, "vision": dataclasses.asdict(vision)}
            (tmp_path / "manifest.json").write_text(json.dumps(raw))
            assert serve.pool_bytes(tmp_path) == pool_bytes(max_length, bytes_of_images(vision.feature_bytes))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(serve.Refusal, match="does not say how long its slots are"):
        serve.pool_bytes(tmp_path)
    flags = serve.command(Path("/m"), "k" * 16, pool=9 * MIB)
    assert tuple(flag for flag in flags if flag.startswith("--backend-config=")) == pool_arguments(9 * MIB)


def test_the_container_refuses_in_one_sentence(tmp_path: Path, memory: Memory) -> None:
    serve = _container_script()
    memory(64, free=40)
    with pytest.raises(serve.Refusal, match=r"needs 41\.0 MiB of shared memory, and 40\.0 MiB are free in .*shm_size"):
        serve.check_shared_memory(REPOSITORY, 8 * MIB, tmp_path)
    memory(64, free=41)
    serve.check_shared_memory(REPOSITORY, 8 * MIB, tmp_path)


def _container_script() -> ModuleType:
    image = ROOT / "deploy" / "image"
    if str(image) not in sys.path:  # what lies beside it is found by it
        sys.path.append(str(image))
    spec = importlib.util.spec_from_file_location("deploy_serve", image / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- a full one


def full(file: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_board_takes_all_of_its_memory_when_it_is_made(tmp_path: Path) -> None:
    """A page that is taken later ends the process that touches it (SIGBUS) where there is none."""
    with AckBoard(3000, tmp_path) as board:
        status = (tmp_path / board.name).stat()
        assert status.st_size == board_file.file_bytes(3000)
        assert 512 * status.st_blocks >= status.st_size


def test_a_board_that_finds_no_room_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Unavailable, match=r"has no 24512 bytes for the acknowledgement board: No space left on device"):
        AckBoard(3000, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_block_that_finds_no_room_is_none_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segment = Segment(4 * PAGE, tmp_path)
    first = segment.put(b"a")
    assert first == Block(0, PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(segment_module.os, "posix_fallocate", full)
        assert segment.put(b"b") is None and segment.put(b"c") is None
        segment.release(first)
        assert segment.put(b"d") == first, "what was taken once is there"
    assert [record.getMessage() for record in caplog.records] == [
        "shared memory has no room, large inputs are sent: No space left on device"
    ]
    assert segment.put(bytes(2 * PAGE)) == Block(PAGE, 2 * PAGE), "there is room again"
    segment.close()


def test_a_segment_takes_what_it_uses(tmp_path: Path) -> None:
    segment = Segment(1000 * PAGE, tmp_path)
    segment.put(bytes(3 * PAGE))
    assert (tmp_path / segment.name).stat().st_blocks * 512 == 3 * PAGE
    segment.close()
