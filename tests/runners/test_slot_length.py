"""How long slots are where nobody says it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from autoglm_cli import app
from autoglm_engine.manifest import CacheShape, Manifest
from autoglm_engine.runners import host_memory
from autoglm_engine.runners.host_memory import Room
from autoglm_engine.runners.native.runner import pool_bytes
from autoglm_engine.runners.onnx.memory import CacheLayout
from autoglm_export import slot_length
from autoglm_export.runtimes import RUNTIMES
from autoglm_export.slot_length import SHARE, default_length, length_line, memory_line
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.support.export.tiny_decoders import SPECS
from tests.support.export.tiny_models import write_checkpoint

SMOLLM2 = dataclasses.replace(
    SPECS["llama"], num_layers=30, num_heads=9, num_kv_heads=3, head_size=64, max_position=8192
)
HOST = [(name, precision) for name, runtime in RUNTIMES.items() for precision in runtime.host_cache]


def room(num_bytes: float) -> Room:
    return Room(int(num_bytes), "here")


def manifest(runtime: str, precision: str, num_slots: int, length: int) -> Manifest:
    dtype = "bfloat16" if runtime == "native" else "float32"
    shape = CacheShape(SMOLLM2.num_layers, SMOLLM2.num_kv_heads, SMOLLM2.head_size, dtype)
    return Manifest(
        *("smollm2", "llama", runtime, "1", precision, num_slots, length, 128, 49152, shape, (2,), None, {}),
        spec=SMOLLM2.as_json(),
    )


def pool(runtime: str, precision: str, num_slots: int, length: int) -> int:
    """As the runtime itself counts it when it loads."""
    made = manifest(runtime, precision, num_slots, length)
    return pool_bytes(made) if runtime == "native" else CacheLayout.of(made).num_bytes


@pytest.mark.parametrize(("runtime", "needed"), [("native", 3.02e9), ("onnx", 6.04e9)])
def test_the_models_own_positions_where_memory_allows(runtime: str, needed: float) -> None:
    assert default_length(SMOLLM2, runtime, "int8", 16, room=room(3.01 * needed)) == 8192
    assert default_length(SMOLLM2, runtime, "int8", 16, room=room(2.9 * needed)) == 4096
    assert default_length(SMOLLM2, runtime, "int8", 32, room=room(3.01 * needed)) == 4096
    assert default_length(SMOLLM2, runtime, "int8", 16, room=room(1e6)) == 1024


@given(
    runtime=st.sampled_from(HOST),
    positions=st.integers(2, 1 << 20),
    num_slots=st.integers(1, 256),
    free=st.integers(1, 1 << 40),
)
def test_a_third_of_the_memory_and_no_more_halves_than_needed(
    runtime: tuple[str, str], positions: int, num_slots: int, free: int
) -> None:
    spec = dataclasses.replace(SMOLLM2, max_position=positions)
    length = default_length(spec, *runtime, num_slots, room=room(free))
    assert min(1024, positions) <= length <= positions
    whole = length // 128 * 128  # the native pool is in tiles of so many positions
    assert length <= 1024 or pool(*runtime, num_slots, whole) <= free // SHARE
    assert length == positions or pool(*runtime, num_slots, 2 * length + 1) > free // SHARE


def test_a_gpu_has_its_own_memory_which_is_not_known() -> None:
    for runtime, precision in [("onnx", "fp16"), ("tensorrt", "bf16"), ("tensorrt-rtx", "int4")]:
        assert default_length(SMOLLM2, runtime, precision, 16, room=room(1e15)) == 1024
    short = dataclasses.replace(SMOLLM2, max_position=512)
    assert default_length(short, "tensorrt", "bf16", 16) == 512


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (
            manifest("native", "int8", 16, 8192),
            "slots of 8,192 tokens (--max-length): all positions that the model has",
        ),
        (
            manifest("onnx", "int8", 16, 4096),
            "slots of 4,096 tokens (--max-length), of the model's 8,192: 16 longer ones would take over a third of the "
            "free memory",
        ),
        (
            manifest("tensorrt", "bf16", 16, 1024),
            "slots of 1,024 tokens (--max-length), of the model's 8,192: how much memory the GPU will have is not "
            "known here",
        ),
    ],
)
def test_the_line_says_why(made: Manifest, line: str) -> None:
    assert length_line(made) == line


@pytest.mark.parametrize("runtime", ["native", "onnx"])
def test_what_a_server_here_would_refuse_is_told(runtime: str) -> None:
    made, needed = manifest(runtime, "int8", 16, 8192), pool(runtime, "int8", 16, 8192)
    assert memory_line(made, room=room(1.01 * needed)) == ""
    line = memory_line(made, room=room(0.9 * needed))
    assert line.startswith("a server on this machine would refuse it: there is not enough memory for 16 slots of 8192")
    assert line.endswith("here; set max_batch_size to at most 14, or export it with fewer or shorter slots")


def test_nobody_knows_a_gpus_memory_here() -> None:
    for runtime, precision in [("onnx", "fp16"), ("tensorrt", "bf16"), ("tensorrt-rtx", "int4")]:
        assert memory_line(manifest(runtime, precision, 16, 8192), room=room(1e6)) == ""


def test_the_export_tells_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_length, "memory_room", lambda: room(1e9))
    write_checkpoint(tmp_path / "tiny", "llama", max_position_embeddings=1 << 20)
    command = [
        "export",
        str(tmp_path / "tiny"),
        "-o",
        str(tmp_path / "out"),
        "--runtime",
        "onnx",
        "--precision",
        "fp32",
    ]
    told = CliRunner().invoke(app, command, env={"TERM": "dumb"})
    assert told.exit_code == 0, told.output
    length = Manifest.load(tmp_path / "out").max_length
    assert 1024 < length < 1 << 20
    assert f"slots of {length:,} tokens (--max-length), of the model's 1,048,576" in told.stderr
    told = CliRunner().invoke(app, [*command, "--max-length", "64"], env={"TERM": "dumb"})
    assert "slots of" not in told.stderr
    monkeypatch.setattr(host_memory, "memory_room", lambda: room(1e4))
    told = CliRunner().invoke(app, [*command, "--max-length", "64"], env={"TERM": "dumb"})
    assert "a server on this machine would refuse it: there is not enough memory for 16 slots of 64" in told.stderr
