"""What passes between the suite and a peer's own process."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from autoglm_perf.experiments.peers import PEERS
from autoglm_perf.peers import environment
from autoglm_perf.peers.environment import Peer, interpreter, measure, parse
from autoglm_perf.peers.protocol import Job, Timing, serve
from autoglm_perf.suite import CannotRun


def test_every_peer_is_pinned_and_has_its_module() -> None:
    folder = Path(environment.__file__).parent
    assert PEERS
    for peer in PEERS:
        assert all("==" in requirement for requirement in peer.requirements)
        assert (folder / f"{peer.module}.py").exists()


def test_a_peer_reads_a_job_and_its_last_line_becomes_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {"checkpoint": "m.gguf", "folder": str(tmp_path / "new"), "prompts": [[1, 2]], "max_tokens": 4}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({**raw, "concurrency": 1, "threads": 2})))

    def run(path: Path, job: Job) -> list[Timing]:
        print("chatter of a library")
        return [(1.0, 1.5, 3.0, job.max_tokens)]

    serve(lambda job: job.folder / job.checkpoint, run)
    assert (tmp_path / "new").is_dir()
    (timing,) = parse(capsys.readouterr().out)
    assert (timing.time_to_first_token, timing.latency, timing.num_tokens) == (0.5, 2.0, 4)


def test_a_peer_that_needs_nothing_runs_here_and_says_why_it_cannot(tmp_path: Path) -> None:
    peer = Peer("no_such_module", "nobody")
    assert interpreter(peer, tmp_path) == Path(sys.executable)
    with pytest.raises(CannotRun, match=r"nobody ended with 1: .*no_such_module"):
        measure(peer, {}, tmp_path)
