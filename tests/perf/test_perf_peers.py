"""What passes between the suite and a peer's own process."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.gguf.file import GgufFile
from autoglm_perf.experiments.system.peers import PEERS
from autoglm_perf.in_process.fidelity import Fidelity, FixedTexts
from autoglm_perf.peers import environment
from autoglm_perf.peers.environment import Peer, interpreter, measure, parse
from autoglm_perf.peers.float_checkpoint import write_float16
from autoglm_perf.peers.protocol import Job, Timing, serve
from autoglm_perf.peers.transformers_batching import Transformers
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.system.memory import peak_mb, peak_of
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize

from tests.export.test_gguf import PLAIN, checkpoint_of, gguf_tensors, write_gguf
from tests.support.export.tiny_models import VOCAB_SIZE


def test_every_peer_is_pinned_and_has_its_module() -> None:
    folder = Path(environment.__file__).parent
    assert PEERS
    for peer in PEERS:
        assert all("==" in requirement for requirement in peer.requirements)
        assert (folder / f"{peer.module}.py").exists()


RAW = {"checkpoint": "m.gguf", "float16": "f.gguf", "prompts": [[1, 2]], "texts": [[3, 4]], "max_tokens": 4}
REST = {"variant": "q", "concurrency": 1, "threads": 2}


class FakePeer:
    def prepare(self, job: Job) -> Path:
        return job.folder / job.checkpoint

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]:
        print("chatter of a library")
        return [(1.0, 1.5, 3.0, job.max_tokens)], f"{path.name}, {job.threads} threads"

    def logits(self, path: Path, job: Job) -> list[Any]:
        return [[[float(token), 0.0] for token in text] for text in job.texts]


def asked(action: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    raw = {**RAW, **REST, "action": action, "folder": str(folder)}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(raw)))
    serve(FakePeer())
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_a_peer_reads_a_job_and_its_last_line_becomes_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = parse(asked("measure", tmp_path / "new", monkeypatch, capsys))
    assert (tmp_path / "new").is_dir()
    (timing,) = measured.timings
    assert (timing.time_to_first_token, timing.latency, timing.num_tokens) == (0.5, 2.0, 4)
    assert measured.note == "m.gguf, 2 threads"
    assert 1 < measured.peak_mb < 100_000


def test_a_peers_logits_come_back_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = json.loads(asked("logits", tmp_path, monkeypatch, capsys))["files"]
    array = np.load(file)
    assert array.dtype == np.float32
    assert array.tolist() == [[3.0, 0.0], [4.0, 0.0]]


def test_preparing_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked("prepare", tmp_path, monkeypatch, capsys) == "{}"


def test_a_peer_that_needs_nothing_runs_here_and_says_why_it_cannot(tmp_path: Path) -> None:
    peer = Peer("no_such_module", "q", "nobody")
    assert interpreter(peer, tmp_path) == Path(sys.executable)
    with pytest.raises(CannotRun, match=r"nobody ended with 1: .*no_such_module"):
        measure(peer, {}, tmp_path)


def test_fidelity_of_a_known_case() -> None:
    """Float32 gives each of two tokens a half. The first row predicts with 3/4, the second with 1/4, the last
    nothing."""
    texts = FixedTexts((np.array([0, 1, 1], np.int32),), (np.zeros((3, 2), np.float32),))
    skewed = np.array([[0.0, np.log(3.0)], [np.log(3.0), 0.0], [9.0, 0.0]], np.float32)
    found = texts.compare([skewed])
    excess = np.log([0.5 / 0.75, 0.5 / 0.25])
    assert found.perplexity_ratio == pytest.approx(np.exp(excess.mean()))
    assert found.error == pytest.approx(found.perplexity_ratio * abs(excess[0] - excess[1]) / 2)
    assert found.divergence == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert texts.compare(texts.reference) == Fidelity(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"shape \(1, 2\) instead of \(3, 2\)"):
        texts.compare([np.zeros((1, 2), np.float32)])


def test_the_weights_in_float16_are_the_checkpoints(tmp_path: Path) -> None:
    source, target = tmp_path / "small.gguf", tmp_path / "new" / "float16.gguf"
    matrix = np.linspace(-1.0, 1.0, 4 * 32, dtype=np.float32).reshape(4, 32)
    writer = GGUFWriter(source, "llama")
    writer.add_block_count(7)
    writer.add_tensor("a.weight", quantize(matrix, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    before, after = GgufFile(source), GgufFile(write_float16(source, target))
    assert [path.name for path in target.parent.iterdir()] == ["float16.gguf"]
    assert (after.get("llama.block_count"), after.get("general.architecture")) == (7, "llama")
    assert [tensor.tensor_type.name for tensor in GGUFReader(target).tensors] == ["F16", "F32"]
    for name in ("a.weight", "norm"):
        np.testing.assert_allclose(after.read(name, slice(None)), before.read(name, slice(None)), rtol=1e-3)


def test_the_peak_of_a_process() -> None:
    assert peak_mb("Name:\tx\nVmPeak:\t  9999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n") == 2.0
    with pytest.raises(ValueError, match="VmHWM"):
        peak_mb("Name:\tkthreadd\n")
    assert peak_of(["self", os.getpid()]) > 2


@pytest.mark.parity
@pytest.mark.slow
def test_transformers_batches_requests_that_come_while_others_run(tmp_path: Path) -> None:
    """The manager is transformers' own; three prompts of unequal length on two places, each to its last token."""
    checkpoint, prompts = tmp_path / "tiny.gguf", [[11] * 90, [12] * 5, [13] * 40]
    tiny = checkpoint_of(tmp_path, "llama", **PLAIN["llama"])
    write_gguf(checkpoint, tiny.spec, gguf_tensors(tiny))
    job = Job("measure", "float32", checkpoint, checkpoint, tmp_path, prompts, [[50, 35]], 6, 2, 2)
    timings, note = Transformers().measure(checkpoint, job)
    assert [timing[3] for timing in timings] == [6, 6, 6] and "sdpa" in note
    assert all(started < first < finished for started, first, finished, _ in timings)
    starts = sorted(timing[0] for timing in timings)
    assert starts[2] >= min(timing[2] for timing in timings), "the third waited for a place"
    assert Transformers().logits(checkpoint, job)[0].shape == (2, VOCAB_SIZE)


def test_a_peer_that_is_started_by_hand_says_who_sends_it_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit, match="--only peers"):
        serve(Transformers())
