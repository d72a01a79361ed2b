"""Servers that others start in their own way, on the same models: forwarded headers, clients of their own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli.repository.writer import Family, write_family
from autoglm_cli.server.local_server import LocalServer
from autoglm_client.exceptions import LocalServerError

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.raw_grpc import Stream, tensor

pytestmark = pytest.mark.server
QUESTION = "The sky is"
# As a mesh adds them, in the case that it likes.
HEADERS = {
    "X-Request-Id": "5f0c",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "x-b3-sampled": "1",
    "X-Tenant": "somebody",
    "Cache-Control": "no-cache",
    "baggage": "user=1",
}


@pytest.fixture(scope="module")
def foreign(artifact: Path) -> Iterator[LocalServer]:
    """It forwards every header that it gets."""
    arguments = ("--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*")
    with LocalServer(
        MODEL_REPOSITORY, artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}, arguments=arguments
    ) as running:
        yield running


def post(server: LocalServer, path: str, **fields: Any) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(server.host, server.http_port, timeout=300)) as connection:
        connection.request("POST", f"/v2/models/{path}", json.dumps(fields), {"Content-Type": "x/json", **HEADERS})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_forwarded_headers_change_nothing(foreign: LocalServer) -> None:
    status, body = post(foreign, "autoglm/generate", text_input=QUESTION, max_tokens=4)
    assert status == 200, body
    whole = json.loads(body)["text_output"]
    assert whole
    lower = {name.lower(): value for name, value in HEADERS.items()}  # as HTTP/2 wants them
    with Stream(foreign.grpc_url, lower) as stream:
        answer = stream.finish(
            stream.send([tensor("text_input", QUESTION.encode()), tensor("max_tokens", 4)], session_id="1")
        )
    assert (answer.error, answer.text) == ("", whole)


def test_a_slip_is_refused_beside_them(foreign: LocalServer) -> None:
    status, body = post(foreign, "autoglm/generate", text_input=QUESTION, max_token=4)
    assert status == 400
    assert "unknown option max_token; the nearest is max_tokens" in body


def test_an_id_over_http_names_the_request_and_cancels_it(foreign: LocalServer) -> None:
    answers: list[tuple[int, str]] = []
    options = {"text_input": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "id": "mine"}
    asking = threading.Thread(target=lambda: answers.append(post(foreign, "autoglm/generate_stream", **options)))
    asking.start()
    with Stream(foreign.grpc_url) as stream:
        while asking.is_alive() and not stream.control(stats=True)["running"]:
            threading.Event().wait(0.02)
    status, body = post(foreign, "engine/generate", control=json.dumps({"cancel": ["mine"]}))
    assert status == 200
    assert json.loads(bytes(json.loads(body)["event"])) == {"cancelled": 1}
    asking.join()
    ((status, body),) = answers
    last = json.loads(body.strip().splitlines()[-1].removeprefix("data: "))
    assert (status, last["finish_reason"]) == (200, "cancelled")
    assert last["completion_tokens"] < 900


# ---- models that lie elsewhere


@pytest.fixture(scope="module")
def apart(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A repository for each model, as Triton makes one of each that it fetches from afar; none may be written to."""
    folder = tmp_path_factory.mktemp("apart")
    names = write_family(Family("autoglm", MODEL_REPOSITORY, artifact, link=False, alone=True), folder / "whole")
    repositories = []
    for name in names:
        (folder / name).mkdir()
        (folder / "whole" / name).rename(folder / name / name)
        repositories.append(folder / name)
    return repositories


def options(repositories: list[Path]) -> dict[str, Any]:
    """`LocalServer` names one repository by itself."""
    return {
        "model_repository": repositories[0],
        "arguments": tuple(f"--model-repository={repository}" for repository in repositories[1:]),
        "env": {"AUTOGLM_CACHE_MODE": "off", "PYTHONDONTWRITEBYTECODE": "1"},
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a folder that nobody can write to")
def test_models_that_lie_apart_answer(apart: list[Path]) -> None:
    with mounted_read_only(apart) as repositories, LocalServer(**options(repositories)) as server:
        status, body = post(server, "autoglm/generate", text_input=QUESTION, max_tokens=4)
        assert (status, json.loads(body)["completion_tokens"]) == (200, 4)
        assert "Read-only file system" not in server.log_text()


def test_a_model_without_its_code_is_one_sentence(
    apart: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is fetched from a repository that was copied as it is in the tree, where the package is not installed."""
    repositories = [path for path in apart if path.name != "tokenizer"]
    shutil.copytree(
        MODEL_REPOSITORY / "tokenizer", tmp_path / "bare" / "tokenizer", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(sys, "executable", str(environment_without_ours(tmp_path / "python")))
    sentence = r"there is no package autoglm_engine .*: neither in .*/tokenizer/1 nor in"
    with (
        pytest.raises(LocalServerError, match=sentence),
        LocalServer(**options([*repositories, tmp_path / "bare"])),
    ):
        pass


def environment_without_ours(folder: Path) -> Path:
    """The interpreter of a virtual environment that has the packages of this one but for this project's. A stub of
    Triton heeds no PYTHONPATH: it finds its packages by the python3 that is first on PATH."""
    site = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    site.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "autoglm" not in path.name:
            (site / path.name).symlink_to(path)
    (folder / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    return folder / "bin" / "python3"


@contextmanager
def mounted_read_only(folders: list[Path]) -> Iterator[list[Path]]:
    """The same folders, mounted elsewhere so that nobody can write."""
    with ExitStack() as stack:
        mounts = []
        for folder in folders:
            mount = folder.with_name(f"{folder.name}-mounted")
            mount.mkdir()
            stack.callback(mount.rmdir)
            subprocess.run(["mount", "--bind", "-o", "ro", folder, mount], check=True, capture_output=True)
            stack.callback(subprocess.run, ["umount", "--lazy", mount], check=True)
            mounts.append(mount)
        yield mounts


# ---- what dies


@pytest.mark.parametrize("model", ["tokenizer", "detokenizer", "embedder"])
def test_a_server_ends_with_each_of_its_models(artifact: Path, model: str) -> None:
    """Under anybody's tritonserver: nobody but the models themselves looks after them here."""
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as server:
        (pid,) = (pid for pid, name in server._stubs.items() if name == model)
        os.kill(pid, signal.SIGKILL)
        while server.is_alive():
            threading.Event().wait(0.05)
        assert f"Error: the {model}'s process died: the server ends" in server.log_text()


def test_explicit_mode_loads_the_embedder_where_it_is_named(artifact: Path) -> None:
    def is_ready(server: LocalServer, model: str) -> bool:
        with closing(http.client.HTTPConnection(server.host, server.http_port, timeout=60)) as connection:
            connection.request("GET", f"/v2/models/{model}/ready")
            return connection.getresponse().status == 200

    explicit = ("--model-control-mode=explicit", "--load-model=autoglm", "--load-model=embedder")
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, arguments=explicit) as server:
        assert is_ready(server, "autoglm") and is_ready(server, "embedder")
