"""What enters the keys of kept answers: everything that can change an answer, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.cache import answer_digest as answers
from autoglm_engine.cache import fingerprint as keys
from autoglm_engine.core import Request, SamplingOptions, SemanticQuery
from autoglm_engine.manifest import CacheShape, FileRecord, Manifest

from tests.support.vision.settings import vision_settings

MANIFEST = Manifest(
    model_name="tiny",
    family="llama",
    runtime="onnx",
    runtime_version="1.0.0",
    precision="fp32",
    num_slots=4,
    max_length=64,
    prefill_chunk=16,
    vocab_size=300,
    cache=CacheShape(2, 2, 16, "float32"),
    eos_token_ids=(0, 1),
    bos_token_id=2,
    generation_defaults={"temperature": 0.5},
    spec={"num_layers": 2},
    runtime_details={"model": "model.onnx", "cache_length": 64},
    files={name: FileRecord(1, name) for name in ("model.onnx", "tokenizer.json", "chat_template.jinja")},
)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 1024},
        {"eos_token_ids": (0,)},
        {"eos_token_ids": (1, 0)},  # the first one is the template's, where no special tokens are named
        {"special_tokens": {"eos_token": "</s>"}},
        {"stop_strings": ("User:",)},
        {"banned_tokens": ((7,),)},
        {"bos_token_id": None},
        {"vocab_size": 301},
        {"prefill_chunk": 8},
        {"runtime": "native"},
        {"runtime_version": "1.1.0"},
        {"precision": "int8"},
        {"cache": CacheShape(2, 2, 16, "float16")},
        {"generation_defaults": {}},
        {"spec": {"num_layers": 3}},
        {"runtime_details": {"model": "model.onnx", "cache_length": 65}},
        {"files": MANIFEST.files | {"chat_template.jinja": FileRecord(1, "another")}},
        {"files": MANIFEST.files | {"tokenizer.json": FileRecord(1, "another")}},
        {"files": MANIFEST.files | {"model.onnx": FileRecord(1, "another")}},
    ],
    ids=lambda change: "-".join(change),
)
def test_artifacts_whose_answers_may_differ_have_other_digests(change: dict[str, Any]) -> None:
    assert dataclasses.replace(MANIFEST, **change).digest != MANIFEST.digest


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "other"},
        {"num_slots": 16},
        {"parity": {"perplexity": 1.0}},
        {"source": "elsewhere"},
        {"exporter_version": "9"},
        {"runtime_details": {**MANIFEST.runtime_details, "auto": {"native": 1.0}}},
        {"runtime_details": {**MANIFEST.runtime_details, "checkpoint_note": "num_beams 4"}},
        {"files": dict(reversed(MANIFEST.files.items()))},
    ],
    ids=lambda change: "-".join(change),
)
def test_what_no_answer_depends_on_is_in_no_digest(change: dict[str, Any]) -> None:
    assert dataclasses.replace(MANIFEST, **change).digest == MANIFEST.digest


def test_the_engine_and_its_libraries_are_part_of_what_a_server_answers(tmp_path: Path) -> None:
    """Two releases draw, guide or stop differently."""
    (tmp_path / "sampling.py").write_text("release = 1\n")
    before = answers.code_digest(tmp_path)
    (tmp_path / "sampling.py").write_text("release = 2\n")
    changed = answers.code_digest(tmp_path)
    (tmp_path / "sampling.py").rename(tmp_path / "sampler.py")
    assert len({before, changed, answers.code_digest(tmp_path)}) == 3
    libraries = answers.versions(("numpy", "llguidance"))
    assert libraries[0] == ("numpy", np.__version__) and libraries[1][1] is not None
    whole = {answers.combined(*parts) for parts in ((a, c, v) for a in "ab" for c in "cd" for v in (libraries, []))}
    assert len(whole) == 8


def test_a_server_reads_its_own_code_and_its_artifact() -> None:
    digest = answers.answer_digest(MANIFEST)
    assert digest == answers.answer_digest(MANIFEST)
    assert digest != answers.answer_digest(dataclasses.replace(MANIFEST, max_length=1024))
    assert answers.code_digest(Path(answers.__file__).parent) != answers.code_digest(Path(__file__).parent.parent)


def test_a_ready_grammar_counts_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingOptions(max_tokens=8, guided_grammar="open-autoglm")
    request = Request("r", np.arange(3, dtype=np.int32), sampling, question=SemanticQuery("what?", "context"))

    def both() -> tuple[bytes, bytes]:
        return keys.fingerprint("digest", request), keys.context_fingerprint("digest", request)

    before = both()
    assert before == both()
    monkeypatch.setattr(keys, "READY", {"open-autoglm": 'start: "another"'})
    exact, semantic = both()
    assert exact != before[0] and semantic != before[1]


def test_what_decodes_and_encodes_images_counts_where_a_model_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def versions(libraries: tuple[str, ...]) -> list[tuple[str, str]]:
        asked[:] = libraries
        return [(name, "1") for name in libraries]

    monkeypatch.setattr(answers, "versions", versions)
    native = dataclasses.replace(MANIFEST, runtime="native")
    of_text = answers.answer_digest(native)
    assert not {"pillow", "onnxruntime"} & {*asked}
    assert answers.answer_digest(dataclasses.replace(native, vision=vision_settings())) != of_text
    assert {"pillow", "onnxruntime"} < {*asked}
