"""The export's frame: what the artifact holds, which options are refused, and that it appears whole or not at all."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from autoglm_engine.manifest import Manifest
from autoglm_export import runtimes as lowering
from autoglm_export.errors import CheckpointError, ExportError, InvalidOption
from autoglm_export.export import export as export_any
from autoglm_export.model.spec import ModelSpec

from tests.support.export.tiny_models import edit_json, write_checkpoint

export = functools.partial(export_any, runtime="onnx")  # a fake one, mostly


class FakeRuntime:
    """A runtime that writes the names of the weights it read; `fails` raises when half of them are written."""

    precisions = ("fp32", "int8")

    default_precision, options, calibrated, prefill_chunk = "int8", ("colour",), (), 128
    has_reference = False
    host_cache: ClassVar = {"fp32": 4, "int8": 4}

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.calls: list[dict[str, Any]] = []

    def version(self) -> str:
        return "7.8.9"

    def load(self) -> lowering.Lowering:
        return self.lower

    def lower(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Any],
        folder: Path,
        *,
        precision: str,
        num_slots: int,
        max_length: int,
        prefill_chunk: int,
        texts: Sequence[Any],
        progress: lowering.Progress,
    ) -> dict[str, Any]:
        self.calls.append({"precision": precision, "num_slots": num_slots, "max_length": max_length})
        (folder / "weights").mkdir()
        with (folder / "weights" / "names").open("w") as stream:
            for index, name in enumerate(weights):
                if self.fails and index == len(weights) // 2:
                    raise self.fails
                stream.write(f"{name} {weights[name].shape}\n")
                progress("lower", index / len(weights))
        return {"cache_dtype": "float16", "graph": "weights/names", "chunk": prefill_chunk}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "tiny-glm4"
    write_checkpoint(folder, "glm4")
    edit_json(folder / "generation_config.json", do_sample=True, temperature=0.8, eos_token_id=[256, 258])
    return folder


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setitem(lowering.RUNTIMES, "onnx", fake)  # type: ignore[arg-type]
    return fake


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_artifact_is_complete(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    stages: list[str] = []
    out = tmp_path / "deep" / "artifact"
    manifest = export(checkpoint, out, max_slots=3, max_length=64, progress=lambda stage, _: stages.append(stage))
    assert listing(out) == ["chat_template.jinja", "manifest.json", "tokenizer.json", "weights/names"]
    assert Manifest.load(out) == manifest
    manifest.verify_files(out, digests=True)
    assert manifest.files.keys() == set(listing(out)) - {"manifest.json"}
    assert (manifest.model_name, manifest.source, manifest.family) == ("tiny-glm4", "tiny-glm4", "glm4")
    assert (manifest.num_slots, manifest.max_length, manifest.prefill_chunk) == (3, 64, 64)
    assert (manifest.runtime_version, manifest.cache.dtype, manifest.precision) == ("7.8.9", "float16", "int8")
    assert manifest.eos_token_ids == (256, 258)
    assert manifest.generation_defaults == {"temperature": 0.8}
    assert manifest.spec["rope"]["interleaved"] is True
    assert str(tmp_path) not in (out / "manifest.json").read_text(), "a path of the exporting machine"
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    assert {"read checkpoint", "lower"} <= set(stages)


def test_max_length_defaults_to_what_the_model_allows(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "a").max_length == 512
    assert export(checkpoint, tmp_path / "a").prefill_chunk == 128


OPTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"runtime": "openvino"},
        "runtime 'openvino' is not known; allowed are auto, onnx, native, tensorrt, tensorrt-rtx",
    ),
    ({"precision": "int3"}, "the runtime onnx has no precision 'int3'; allowed are fp32, int8"),
    ({"kv_dtype": "fp16"}, "the runtime onnx has no option kv_dtype"),
    ({"calibration": Path("text")}, "a calibration text is of no use to int8 on the runtime onnx"),
    ({"max_length": 513}, "max_length is 513; allowed is 2 ... 512"),
    ({"max_length": 1}, "max_length is 1"),
    ({"max_slots": 0}, "max_slots is 0; allowed is 1 ... 1024"),
    ({"max_slots": 1025}, "max_slots is 1025"),
    ({"max_length": 64, "prefill_chunk": 65}, "prefill_chunk is 65; allowed is 1 ... 64"),
    ({"prefill_chunk": 0}, "prefill_chunk is 0"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[message for _, message in OPTIONS])
def test_options_out_of_range(
    options: dict[str, Any], message: str, checkpoint: Path, runtime: FakeRuntime, tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption) as caught:
        export(checkpoint, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "failure", [CheckpointError("half a shard"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failure_leaves_nothing(failure: Any, checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.fails = failure
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ExportError
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else "half a shard|No space left"):
        export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_keeps_the_earlier_artifact(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out", max_slots=2)
    runtime.fails = CheckpointError("half a shard")
    with pytest.raises(CheckpointError):
        export(checkpoint, tmp_path / "out", max_slots=3)
    assert Manifest.load(tmp_path / "out").num_slots == 2
    runtime.fails = None
    export(checkpoint, tmp_path / "out", max_slots=3)
    assert Manifest.load(tmp_path / "out").num_slots == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_artifact_is_not_replaced(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for name in ("precious", "file"):
        with pytest.raises(InvalidOption, match="exists and is no artifact"):
            export(checkpoint, tmp_path / name)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"
    assert not runtime.calls, "the checkpoint was lowered before the output was checked"


def test_an_empty_folder_and_a_link_are_filled(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export(checkpoint, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    Manifest.load(tmp_path / "empty")


KILLED = """
import os, signal, sys
from pathlib import Path
from autoglm_export import runtimes as lowering
from autoglm_export.export import export

class Killed(lowering.Runtime):
    def version(self): return "1"
    def load(self): return self.lower
    def lower(self, spec, weights, folder, **options):
        (folder / "graph").write_bytes(weights["embed"].tobytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)

lowering.RUNTIMES["onnx"] = Killed("", "", "", ("int8",), "int8")
export(Path(sys.argv[1]), Path(sys.argv[2]), runtime="onnx")
"""


@pytest.mark.slow
def test_killed_in_the_middle(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "old", max_slots=2)
    for name in ("old", "new"):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(checkpoint), str(tmp_path / name)]
        assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    Manifest.load(tmp_path / "old").verify_files(tmp_path / "old", digests=True)
    assert len(list(tmp_path.glob(".*.partial-*"))) == 2
    for name in ("old", "new"):
        export(checkpoint, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"], "leftovers of the dead are removed"


def test_another_export_that_is_running_is_left_alone(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    running = tmp_path / f".out.partial-{os.getppid()}"
    running.mkdir()
    export(checkpoint, tmp_path / "out")
    assert running.exists()


def test_onnx_artifact_of_a_damaged_checkpoint_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        export(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_same_checkpoint_gives_the_same_digest(checkpoint: Path, runtime: FakeRuntime, tmp_path: Path) -> None:
    first, second = export(checkpoint, tmp_path / "a"), export(checkpoint, tmp_path / "b")
    assert first.digest == second.digest
    spec = json.loads(json.dumps(dataclasses.asdict(first)))["spec"]
    assert spec["norm_eps"] == pytest.approx(1.5625e-07)
    assert np.isfinite(spec["rope"]["theta"])
