"""deploy/smoke.sh and what it asks: on the real server, and on servers that do what they should not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli.server.triton_install import find_triton

from tests.by_hand.triton_matrix import Found, launcher, table
from tests.repo.test_deploy import load_script
from tests.support.server.http_servers import QuietHandler, listening

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "smoke.sh"
smoke = load_script("smoke", ROOT / "deploy")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_help_says_how_it_is_used() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert set(re.findall(r"^\s+(--[a-z-]+)", done.stdout, re.MULTILINE)) == {
        *("--local", "--repository", "--artifact", "--install", "--docker-flags", "--image", "--timeout", "--log")
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--locale"], "unknown option --locale; --help lists them"),
        (["--timeout"], "--timeout needs a value"),
        (["--repository", "/nowhere"], "there is no model repository at /nowhere"),
        (["--artifact", "/nowhere"], "there is no artifact at /nowhere: autoglm export writes one"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (2, f"Error: {sentence}\n")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What looks like an artifact to the script."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_server_that_ends_at_once_is_a_failed_start(written: Path, tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text('#!/bin/sh\necho "E1129 error: creating server: no"\nexit 1\n')
    program.chmod(0o755)
    done = run("--local", "--artifact", written, TRITONSERVER=str(program))
    assert done.returncode == 1
    assert "FAIL  start: E1129 error: creating server: no\n" in done.stdout


DOCKER = """#!/bin/sh
echo "$*" >> "$DOCKER_SAID"
case $1 in
port) echo 127.0.0.1:9 ;;
inspect) echo true ;;
logs) echo "the last line" ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that starts nothing and writes down what it is asked; nobody listens behind its ports."""
    folder, said = tmp_path / "bin", tmp_path / "said"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_SAID", str(said))
    return said


def test_each_container_is_started_as_it_should_be_and_removed(written: Path, docker: Path) -> None:
    done = run(
        "--artifact", written, "--timeout", "0", "--docker-flags", "--gpus all", "--install", "x==1", "24.11", "25.06"
    )
    assert done.returncode == 1
    assert done.stdout.count("FAIL  start: the last line") == 2
    said = docker.read_text()
    runs = re.findall(r"^run .*$", said, re.MULTILINE)
    assert [re.search(r"tritonserver:(\S+)", one)[1] for one in runs] == ["24.11-py3", "25.06-py3"]  # type: ignore[index]
    for one in runs:
        assert "--gpus all" in one and "AUTOGLM_INSTALL= x==1" in one and ":/model_repository:ro" in one
        assert f"{written}:/artifact:ro" in one and "--publish 127.0.0.1::8000" in one
        name = re.search(r"--name (\S+)", one)[1]  # type: ignore[index]
        assert f"rm --force {name}\n" in said
    assert "--model-control-mode=explicit" in said and "--require-hashes" in said


def test_the_containers_of_the_docs_are_the_default(written: Path, docker: Path) -> None:
    run("--artifact", written, "--timeout", "0")
    assert re.findall(r"tritonserver:(\S+)-py3", docker.read_text()) == ["24.11", "25.06", "26.08"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "TRITON_TAG=26.08-py3" in dockerfile, "the newest one is what our own image is built on"


# ---- what the checks find


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], tuple[int, list[Any]]]) -> Iterator[Any]:
    """`answer`: (path, body) -> (status, JSON of the responses; several are a stream)."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, found = answer(self.path, body)
            is_stream = self.path.endswith("generate_stream")
            parts = [f"data: {json.dumps(one)}\n\n" if is_stream else json.dumps(one) for one in found]
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(parts).encode())

    with listening(Handler) as url:
        yield smoke.Server(url, "http://127.0.0.1:9/metrics")


def pieces(counts: list[int], texts: list[str] | None = None) -> list[dict[str, Any]]:
    ends = ["" for _ in counts[1:]] + ["length"]
    said = texts or ["x"] * len(counts)
    return [
        {"completion_tokens": count, "finish_reason": end, "text_output": text}
        for count, end, text in zip(counts, ends, said, strict=True)
    ]


TOKENS = smoke.STREAM_TOKENS


@pytest.mark.parametrize(
    ("counts", "is_right"),
    [([1, 2, TOKENS], True), ([1, 1, TOKENS], True), ([2, 1, TOKENS], False), ([1, TOKENS, 2], False), ([1, 2], False)],
)
def test_order_under_load_sees_a_response_that_overtook(counts: list[int], is_right: bool) -> None:
    with serving(lambda path, body: (200, pieces(counts))) as server:
        if is_right:
            assert smoke.order_under_load(server)
        else:
            with pytest.raises(smoke.Failed, match="32 of 32 streams came out of order"):
                smoke.order_under_load(server)


def test_pieces_that_do_not_join_to_the_answer_are_found() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, list[Any]]:
        return 200, pieces([1, 2], ["b", "a"]) if body.get("stream") else pieces([2], ["ab"])

    with serving(answer) as server, pytest.raises(smoke.Failed, match="the pieces join to 'ba', the answer is 'ab'"):
        smoke.streams_join_to_the_answer(server)


def test_an_error_that_is_no_sentence_is_found() -> None:
    with (
        serving(lambda path, body: (500, ["Traceback"])) as server,
        pytest.raises(smoke.Failed, match="answered 500: Tra"),
    ):
        smoke.errors(server)


def test_a_server_that_has_ended_is_asked_nothing_more() -> None:
    said: list[str] = []
    gone = smoke.Server("http://127.0.0.1:9", "http://127.0.0.1:9/metrics")
    assert smoke.run(gone, with_reload=True, show=said.append) == 2
    assert said[0].startswith("FAIL  probes: ") and said[1].startswith("FAIL  server: it has ended")


def test_a_table_says_what_did_not_hold() -> None:
    good = Found("0.7.0", ["ok    probes: triton 2.51.0", "ok    metrics: 39 of autoglm, 7 of them histograms"])
    bad = Found(
        "0.5.8", ["ok    probes: triton 2.46.0", "ok    metrics: 32 of autoglm, 0 of them histograms", "FAIL  end: x"]
    )
    assert table([good, bad]).splitlines()[2:] == [
        "| 2.51 (24.10) | 0.7.0 | all 2 hold | yes |",
        "| 2.46 (24.05) | 0.5.8 | 2 hold; not: end | no |",
    ]


@pytest.mark.server
def test_all_of_it_holds_on_the_real_server(artifact: Path, tmp_path: Path) -> None:
    """Also reloading, and the end. Two of the checks tell the versions in docs/serving/versions.md apart."""
    program = launcher(find_triton(), tmp_path)
    done = run("--local", "--artifact", artifact, "--log", tmp_path / "log", TRITONSERVER=str(program))
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log").read_text()[-2000:]
    names = re.findall(r"^ok +([a-z ]+):", done.stdout, re.MULTILINE)
    expected = [check.__name__.replace("_", " ") for check in smoke.CHECKS]
    assert names == [*expected, "reload of the engine", "reload", "order under load", "probes", "end"]
