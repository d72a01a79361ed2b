"""What an artifact holds is what was exported: nothing of it is opened before that was looked at."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.embedder import EmbedderManifest
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.native.program import HEADER_FIELDS, OPERATION_FIELDS, read_program
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.triton.detokenizer_model import load_text
from autoglm_engine.triton.tokenizer_model import RequestPreprocessor

from tests.support.export.native_artifacts import LIBRARY, relist, write_native_artifact
from tests.support.export.tiny_decoders import SPECS, onnx_runner, random_weights

pytestmark = pytest.mark.parity

SPEC = dataclasses.replace(SPECS["llama-biased"], vocab_size=300, num_layers=1)
NATIVE_FILES = ("weights.bin", "program.bin", LIBRARY, "tokenizer.json", "chat_template.jinja")
ONNX_FILES = ("model.onnx", "model.onnx.data")


@pytest.fixture(scope="module")
def kept_native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content") / "native"
    write_native_artifact(folder, SPEC)
    return folder


@pytest.fixture
def native(kept_native: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept_native, tmp_path / "native"))


def load(folder: Path) -> None:
    load_runner(folder, Manifest.load(folder), num_threads=1).close()


def flip(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_artifact_as_it_was_exported_loads(native: Path) -> None:
    load(native)
    RequestPreprocessor.load(native, Manifest.load(native))
    load_text(native, Manifest.load(native))


@pytest.mark.parametrize("name", NATIVE_FILES)
def test_a_changed_byte_is_found_before_the_file_is_opened(name: str, native: Path) -> None:
    flip(native / name)
    with pytest.raises(ArtifactError, match=r"is not the file that was exported: its SHA-256 differs"):
        load(native)


def test_zeroed_weights_are_refused(native: Path) -> None:
    weights = native / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ArtifactError, match=r"weights\.bin is not the file that was exported"):
        load(native)


@pytest.mark.parametrize("name", ONNX_FILES)
def test_a_changed_graph_is_found(name: str, tmp_path: Path) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC)).close()
    flip(tmp_path / name)
    with pytest.raises(ArtifactError, match=rf"{name} is not the file that was exported"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_the_other_models_look_at_what_they_read(name: str, native: Path) -> None:
    flip(native / name)
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        RequestPreprocessor.load(native, Manifest.load(native))
    if name == "tokenizer.json":
        with pytest.raises(ArtifactError, match="is not the file that was exported"):
            load_text(native, Manifest.load(native))


def test_a_template_that_nobody_exported_is_refused(native: Path) -> None:
    (native / "chat_template.jinja").unlink()
    relist(native)
    RequestPreprocessor.load(native, Manifest.load(native))
    (native / "chat_template.jinja").write_text("{{ 'evil' }}")
    with pytest.raises(ArtifactError, match=r"does not list chat_template\.jinja"):
        RequestPreprocessor.load(native, Manifest.load(native))


def test_an_embedder_is_looked_at_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from autoglm_engine.embedder import Embedder

    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("never parsed")
    fields = {"model_name": "e", "num_dimensions": 4, "max_tokens": 8, "pad_token_id": 0}
    EmbedderManifest.of(tmp_path, files=("model.onnx", "tokenizer.json"), **fields).save(tmp_path)
    flip(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that was exported"):
        Embedder(tmp_path)
    edit(tmp_path, num_dimensions="4")
    with pytest.raises(ArtifactError, match='num_dimensions "4"; it must be a whole number of 1'):
        EmbedderManifest.load(tmp_path)


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "slots as text": ({"num_slots": "16"}, 'num_slots "16"; it must be a whole number of 1 ... 1024'),
    "slots true": ({"num_slots": True}, "num_slots true; it must be a whole number"),
    "no slots": ({"num_slots": 0}, "num_slots 0; it must be a whole number of 1 ... 1024"),
    "a fraction": ({"max_length": 64.0}, "max_length 64.0; it must be a whole number of 2"),
    "endless": ({"max_length": 10**30}, "max_length 1000000000000000000000000000000; it must be"),
    "chunk": ({"prefill_chunk": 65}, "prefill_chunk 65; it must be a whole number of 1 ... 64"),
    "vocabulary": ({"vocab_size": -1}, "vocab_size -1; it must be a whole number of 1"),
    "end token": ({"eos_token_ids": [0, 300]}, "eos_token_ids [0, 300]; it must be a list of token ids"),
    "one end token": ({"eos_token_ids": 0}, "eos_token_ids 0; it must be a list"),
    "first token": ({"bos_token_id": 300}, "bos_token_id 300; it must be null or a whole number of 0 ... 299"),
    "banned": ({"banned_tokens": [[300]]}, "banned_tokens [[300]]; it must be a list of lists of token ids"),
    "banned nothing": ({"banned_tokens": [[]]}, "banned_tokens [[]]; it must be a list of lists of token ids"),
    "stop strings": ({"stop_strings": ["a", ""]}, 'stop_strings ["a", ""]; it must be a list of texts'),
    "one stop string": ({"stop_strings": "a"}, 'stop_strings "a"; it must be a list of texts'),
    "named tokens": (
        {"special_tokens": {"bos_token": 1}},
        'special_tokens {"bos_token": 1}; it must be null or an object',
    ),
    "name": ({"model_name": ["x"]}, 'model_name ["x"]; it must be a text'),
    "defaults": ({"generation_defaults": {"top_p": "0.5"}}, "it must be an object of numbers"),
    "no number": ({"generation_defaults": {"top_p": float("nan")}}, "it must be an object of numbers"),
    "cache": ({"cache": [2, 2, 16]}, "cache [2, 2, 16]; it must be an object"),
    "cache part": ({"cache": {"num_layers": 1}}, "is incomplete: it lacks cache.num_kv_heads"),
    "cache type": (
        {"cache": {"num_layers": 1, "num_kv_heads": 2, "head_size": 16, "dtype": "int3"}},
        'cache.dtype "int3"; it must be one of float32, float16, bfloat16',
    ),
    "details": ({"runtime_details": None}, "runtime_details null; it must be an object"),
    "parity": ({"parity": 3}, "parity 3; it must be an object or null"),
    "files": ({"files": ["weights.bin"]}, 'files ["weights.bin"]; it must be an object'),
    "record": ({"files": {"weights.bin": 4}}, "describes weights.bin by 4; it must give bytes and sha256"),
    "size": ({"files": {"a": {"bytes": -1, "sha256": "0" * 64}}}, "files.a.bytes -1; it must be a whole number"),
    "digest": ({"files": {"a": {"bytes": 1, "sha256": "0"}}}, 'files.a.sha256 "0"; it must be 64 hexadecimal digits'),
    "unknown key": ({"extra": 1}, "has unknown keys: extra"),
    "version": ({"schema_version": 2}, "has schema version 2, this engine reads 1"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_value_of_another_type_or_out_of_its_range_is_named(case: str, native: Path) -> None:
    changes, message = NONSENSE[case]
    edit(native, **changes)
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(native)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a":' * 100_000, "7", "\ud800", "\x00"])
def test_what_is_no_manifest_is_refused_in_a_sentence(text: str, native: Path) -> None:
    (native / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"manifest\.json (cannot be read|holds no JSON object)"):
        Manifest.load(native)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".", "", "a//b", "a/./b", "a\0b"])
def test_listed_files_lie_in_the_folder(name: str, native: Path) -> None:
    edit(native, files={name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(ArtifactError, match="files must lie in the artifact's folder"):
        Manifest.load(native)


def details(folder: Path, **changes: Any) -> None:
    edit(folder, runtime_details={**json.loads((folder / "manifest.json").read_text())["runtime_details"], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"libraries": {"any": {"file": "../evil.so", "cpu_features": []}}}, r"names the file \"\.\./evil\.so\""),
        ({"libraries": {"any": {"file": "/tmp/evil.so", "cpu_features": []}}}, r"names the file \"/tmp/evil\.so\""),
        ({"libraries": {"any": {"file": 7, "cpu_features": []}}}, "libraries.file 7; it must be a text"),
        ({"libraries": {"any": {"cpu_features": []}}}, "it lacks runtime_details.libraries.file"),
        ({"libraries": {"any": 7}}, "describes a library by 7"),
        ({"libraries": [1]}, r"runtime_details.libraries \[1\]; it must be an object"),
        ({"program": "/etc/passwd"}, r"names the file \"/etc/passwd\", which is none of the artifact's"),
        ({"weights": "../weights.bin"}, "which is none of the artifact's"),
        ({"weights": None}, "runtime_details.weights null; it must be a text"),
        ({"max_logits_per_span": 0}, "max_logits_per_span 0; it must be a whole number of 1"),
        ({"program_format": 99}, "has format 99, this engine runs"),
    ],
)
def test_details_name_files_of_the_artifact(changes: dict[str, Any], message: str, native: Path) -> None:
    details(native, **changes)
    with pytest.raises(ArtifactError, match=message):
        load(native)


def test_missing_details_are_named(native: Path) -> None:
    edit(native, runtime_details={"program": "program.bin"})
    with pytest.raises(ArtifactError, match="lacks libraries, max_logits_per_span, weights"):
        load(native)


@pytest.mark.parametrize("libraries", [1.5, [1], {"any": {"file": "model.onnx", "cpu_features": []}}])
def test_what_only_another_runtime_has_takes_nothing_out_of_a_digest(libraries: object, tmp_path: Path) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), max_length=24).close()
    details(tmp_path, libraries=libraries, library_sources="sources")
    load(tmp_path)
    manifest = Manifest.load(tmp_path)
    files = {**manifest.files, "model.onnx": dataclasses.replace(manifest.files["model.onnx"], sha256="0" * 64)}
    assert manifest.digest != dataclasses.replace(manifest, files=files).digest


def test_a_graph_that_holds_less_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC), max_length=24).close()
    edit(tmp_path, max_length=48)
    with pytest.raises(ArtifactError, match="max_length 48; its graph's slots hold 24 tokens"):
        load(tmp_path)
    edit(tmp_path, max_length=24, cache={"num_layers": 1, "num_kv_heads": 1, "head_size": 16, "dtype": "float32"})
    with pytest.raises(ArtifactError, match=r"graph has past_key_0 as tensor\(float\) .*export it again"):
        load(tmp_path)
    edit(tmp_path, cache={"num_layers": 2, "num_kv_heads": 2, "head_size": 16, "dtype": "float32"})
    with pytest.raises(ArtifactError, match="graph and manifest disagree about past_key_1"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 400}, "it has 320 logits, the vocabulary 400 tokens"),
        ({"cache": {"num_layers": 2, "num_kv_heads": 2, "head_size": 16, "dtype": "bfloat16"}}, "num_layers 1, and 2"),
        (
            {"cache": {"num_layers": 1, "num_kv_heads": 3, "head_size": 16, "dtype": "bfloat16"}},
            "num_kv_heads 2, and 3",
        ),
        ({"cache": {"num_layers": 1, "num_kv_heads": 2, "head_size": 32, "dtype": "bfloat16"}}, "head_size 16, and 32"),
    ],
)
def test_a_program_of_another_shape_than_the_manifest_is_refused(
    changes: dict[str, Any], message: str, native: Path
) -> None:
    edit(native, **changes)
    with pytest.raises(ArtifactError, match=message):
        load(native)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-8],
        lambda content: content[:-3],
        lambda content: content[:64],
        lambda content: b"",
        lambda content: content + bytes(8),
        lambda content: bytes(len(content)),
    ],
)
def test_a_program_of_another_length_is_refused(damage: Callable[[bytes], bytes], native: Path) -> None:
    path = native / "program.bin"
    path.write_bytes(damage(path.read_bytes()))
    relist(native)
    with pytest.raises(ArtifactError, match=r"program\.bin (does not fit its artifact|has \d+ bytes)"):
        load(native)


RUN_MUTANTS = """
import sys
from pathlib import Path
import numpy as np
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.manifest import Manifest
from tests.support.export import native_artifacts

folder = Path(sys.argv[1])
program = np.fromfile(folder / "program.bin", np.int64)
random = np.random.default_rng(int(sys.argv[2]))
ids = np.arange(16, dtype=np.int32)
ran = refused = 0
for place in random.permutation(len(program))[: int(sys.argv[3])]:
    old = int(program[place])
    near = {old + 1, old - 1, old + 64, old * 2}
    for new in (near | {-(2**63), -64, -1, 0, 1, 2, 3, 4, 7, 64, 2**31, 2**40, 2**62}) - {old}:
        changed = program.copy()
        changed[place] = new
        changed.tofile(folder / "program.bin")
        native_artifacts.relist(folder)
        print(place, old, new, flush=True)
        try:
            runner = load_runner(folder, Manifest.load(folder), num_threads=2)
        except ArtifactError:
            refused += 1
            continue
        runner.forward(StepBatch((Span(0, 0, ids[:9], True), Span(2, 0, ids, True, num_drafts=3))))
        runner.close()
        ran += 1
print("ran", ran, "refused", refused)
"""


@pytest.mark.parametrize(
    ("seed", "count"),
    [pytest.param(1, "10", marks=pytest.mark.slow), pytest.param(2, "9999", marks=pytest.mark.hostile)],
)
def test_no_program_that_is_loaded_ends_the_process(seed: int, count: str, native: Path) -> None:
    """Numbers of it changed, each in many ways and with the manifest's digest right: it is refused, or it runs to its
    end."""
    command = [sys.executable, "-c", RUN_MUTANTS, str(native), str(seed), count]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-500:])
    _, ran, _, refused = done.stdout.splitlines()[-1].split()
    assert int(refused) > 50 and int(ran) > 0, done.stdout.splitlines()[-1]


def test_an_untouched_program_is_as_it_was_written(native: Path) -> None:
    program = read_program(native / "program.bin", Manifest.load(native), (native / "weights.bin").stat().st_size)
    np.testing.assert_array_equal(program, np.fromfile(native / "program.bin", np.int64))
    assert (len(program) - HEADER_FIELDS) % OPERATION_FIELDS == 0
