"""What LocalServer says when something is wrong. The running server is tested in test_server.py."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from autoglm_cli.server import triton_install
from autoglm_cli.server.engine_liveness import EngineLiveness, cpu_seconds
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_log import ending_error, last_line, startup_error, unready_reason
from autoglm_client.exceptions import LocalServerError
from autoglm_client.model_names import ModelNames

from tests.support.engine.small_service import until

STARTED = """\
W1123 21:25:46.1 20973 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory: CUDA driver"
E1123 21:25:46.2 20973 ensemble_scheduler.cc:1468] "unable to create stream: CUDA driver version is insufficient"
Error: Failed to initialize NVML
I1123 21:25:46.3 20973 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:1"
"""
RAISED = (
    'I1123 21:45:24.3 328 pb_stub.cc:366] "Failed to initialize Python stub: ArtifactError: no artifact at /a: '
    'it is missing\\n\\nAt:\\n  /m/manifest.py(82): load\\n"\n'
    "E1123 21:45:24.5 328 model_lifecycle.cc:642] \"failed to load 'engine' version 1: Internal: ArtifactError: x\"\n"
)
NOT_LOADED = (
    "E1123 21:45:24.5 3 model_lifecycle.cc:642] \"failed to load 'engine' version 1: Invalid argument: bad config\"\n"
)
NO_PORT = (
    "E1123 21:45:24.5 3 main.cc:535] \"failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already "
    'in use"\n'
)
DIED = "Error: the engine's process died: the server ends\nSignal (15) received.\n"
EXIT = 'E1123 21:48:57.5 3058 main.cc:535] "failed to stop server: Internal - Exit timeout expired."\n'


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (STARTED + RAISED, "no artifact at /a: it is missing"),
        (STARTED + NOT_LOADED, "the model engine failed to load: Invalid argument: bad config"),
        (STARTED + NO_PORT, "failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use"),
        (STARTED, "Started GRPCInferenceService at 127.0.0.1:1"),
        ("", "it wrote no log"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, sentence: str) -> None:
    assert startup_error(log) == sentence


def test_the_reason_of_an_end() -> None:
    assert ending_error(STARTED + DIED + EXIT) == "the engine's process died: the server ends"
    assert ending_error(STARTED + "Signal (15) received.\n") == "Signal (15) received."
    assert ending_error("fine\nCudaDriverHelper has not been initialized.\n") == "fine"
    pinned = "E1123 21:48:57.5 3 x.cc:1] failed to allocate pinned system memory: no pinned memory pool"
    assert ending_error(f"{pinned}\nNon-graceful termination detected.\n") == "Non-graceful termination detected."
    assert last_line("") == ""


def test_a_model_that_does_not_come_is_named() -> None:
    began = [
        f'I1129 21:30:32.836905 7 model_lifecycle.cc:472] "loading: {model}:1"' for model in ("engine", "x-tokenizer")
    ]
    loaded = "I1129 21:30:32.837174 7 model_lifecycle.cc:839] \"successfully loaded '{}'\""
    assert unready_reason("\n".join([*began, loaded.format("engine")])) == "still loading x-tokenizer"
    assert unready_reason("\n".join([*began, *map(loaded.format, ("engine", "x-tokenizer"))])) == (
        "successfully loaded 'x-tokenizer'"
    )


def test_chosen_ports_differ() -> None:
    server = LocalServer("x", http_port=0, grpc_port=0, metrics_port=0)
    ports = {server.http_port, server.grpc_port, server.metrics_port}
    assert len(ports) == 3
    assert 0 not in ports
    assert LocalServer("x", http_port=8000).http_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("::1", "the host '::1' is not an IPv4 address or a host name, which is what tritonserver takes"),
        ("203.0.113.1", "cannot listen on 203.0.113.1: Cannot assign requested address"),
    ],
)
def test_a_host_that_tritonserver_cannot_listen_on_is_one_sentence(host: str, sentence: str) -> None:
    with pytest.raises(LocalServerError, match=f"^{re.escape(sentence)}$"):
        LocalServer("x", host=host)


def test_a_missing_repository_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match="there is no model repository at"):
        LocalServer(tmp_path / "none").start()


@pytest.mark.parametrize("key", ["short", "with:colon-0123456789", "with=equals-0123456789", "x" * 129])
def test_a_key_that_would_break_the_flag_is_refused(key: str) -> None:
    with pytest.raises(LocalServerError, match=f"the shared-memory key has {len(key)} characters; allowed are 16"):
        LocalServer(".", shared_memory_key=key)


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalServerError, match=r"pip install 'autoglm-triton\[serve\]'"):
        triton_install.find_triton()


def test_a_missing_libpython_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install.sysconfig, "get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr(triton_install.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(triton_install.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(LocalServerError, match=r"apt-get install libpython3\.\d+$"):
        triton_install.find_python_library()


def test_the_backend_directory_is_links_only(tmp_path: Path) -> None:
    backends = triton_install.find_triton().assemble_backends(tmp_path)
    names = {path.name for path in (backends / "python").iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py"} <= names
    assert all(path.is_symlink() and path.exists() for path in (backends / "python").iterdir())


def test_a_strangers_file_under_a_regions_name_does_not_stop_the_stopping(tmp_path: Path) -> None:
    server = LocalServer(tmp_path)
    in_the_way = Path("/dev/shm") / f"{server._command.region_prefix}in-the-way"  # what this user cannot unlink
    in_the_way.mkdir()
    try:
        server.stop()
    finally:
        in_the_way.rmdir()


# ---- an engine that does not answer


@dataclass
class FakeEngine:
    now: float = 0.0
    used: float = 0.0

    def looks(self, liveness: EngineLiveness, count: int, *, share: float, answers: bool = False) -> list[bool]:
        """What `count` looks six seconds apart say, while the engine uses this share of a core."""
        verdicts = []
        for _ in range(count):
            self.now, self.used = self.now + 6, self.used + 6 * share
            verdicts.append(liveness.is_dead(answers=answers))
        return verdicts

    def liveness(self) -> EngineLiveness:
        return EngineLiveness(lambda: self.used, lambda: self.now)


def test_a_busy_engine_is_not_a_dead_one() -> None:
    engine = FakeEngine()
    liveness = engine.liveness()
    assert engine.looks(liveness, 20, share=0.1) == [False] * 20
    assert engine.looks(liveness, 3, share=0.005) == [False, False, True]


def test_an_engine_that_answers_lives_and_one_that_is_silent_for_minutes_does_not() -> None:
    engine = FakeEngine()
    liveness = engine.liveness()
    assert not any(engine.looks(liveness, 100, share=0.0, answers=True))
    assert engine.looks(liveness, 50, share=1.0) == [False] * 50
    assert engine.looks(liveness, 1, share=1.0) == [True]


def test_a_silence_that_ends_begins_anew() -> None:
    engine = FakeEngine()
    liveness = engine.liveness()
    for _ in range(3):
        assert not any(engine.looks(liveness, 2, share=0.0))
        assert not any(engine.looks(liveness, 1, share=0.0, answers=True))


def test_what_a_process_uses_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        until(lambda: cpu_seconds([busy.pid]) > 0.05)
        busy.kill()
    assert cpu_seconds([busy.pid]) == 0.0
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        assert waiting.stdin is not None
        assert cpu_seconds([waiting.pid]) < 5.0
        waiting.stdin.close()


def test_a_server_whose_engine_works_and_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalServer("x")
    server.families = [ModelNames.of("idle"), ModelNames.of("autoglm")]
    looks = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 12:
            raise InterruptedError

    used = iter(range(100))
    monkeypatch.setattr("autoglm_cli.server.local_server.cpu_seconds", lambda pids: float(next(used)))
    for name, found in (("is_alive", True), ("_dead_models", [])):
        monkeypatch.setattr(server, name, lambda found=found: found)
    monkeypatch.setattr(server, "_is_healthy", lambda names: names.ensemble == "idle")
    with pytest.raises(InterruptedError):
        server.wait(0.0, check)
    monkeypatch.setattr("autoglm_cli.server.local_server.cpu_seconds", lambda pids: 0.0)
    with pytest.raises(LocalServerError, match="the model engine no longer answers"):
        server.wait(0.0)
